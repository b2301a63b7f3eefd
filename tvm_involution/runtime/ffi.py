# SPDX-License-Identifier: Apache-2.0
"""`tvm_ffi`, imported without torch.

tvm_ffi imports torch wherever it is installed, which takes seconds and hundreds of megabytes that running a library
does not need (and, with an older torch, compiles an extension). A process that has imported torch before keeps it; one
that imports it later passes tensors all the same, because they cross by DLPack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["tvm_ffi"]


@contextmanager
def _torch_left_out() -> Iterator[None]:
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # `import torch` raises ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


with _torch_left_out():
    import tvm_ffi
