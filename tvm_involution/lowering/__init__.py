# SPDX-License-Identifier: Apache-2.0
"""From scheduled programs to code: TVM's lowering, with what LLVM needs to keep the sums in registers."""

from .pipeline import PIPELINE, build

__all__ = ["PIPELINE", "build"]
