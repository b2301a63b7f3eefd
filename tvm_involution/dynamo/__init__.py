# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(module, backend="tvm_involution")`: what TorchDynamo finds by the package's entry point."""

from .libraries import backend

__all__ = ["backend"]
