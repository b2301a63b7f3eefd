# SPDX-License-Identifier: Apache-2.0
"""Schedule rules for CPUs, one a file."""

from .elementwise import Elementwise
from .involution import Involution
from .packed_gemm import PackedGemm
from .paste_masks import PasteMasks
from .reduction import Reduction

__all__ = ["Elementwise", "Involution", "PackedGemm", "PasteMasks", "Reduction"]
