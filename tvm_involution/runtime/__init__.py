# SPDX-License-Identifier: Apache-2.0
"""Load and run a compiled library; needs neither torch nor the compiler."""

from .metadata import KernelCoverage, LibraryMetadata, Preprocessing, TensorSpec
from .network import CompiledNetwork, load

__all__ = ["CompiledNetwork", "KernelCoverage", "LibraryMetadata", "Preprocessing", "TensorSpec", "load"]
