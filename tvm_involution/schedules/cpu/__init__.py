# SPDX-License-Identifier: Apache-2.0
"""Schedule rules for CPUs, one a file."""

from .elementwise import Elementwise
from .involution import Involution
from .packed_gemm import PackedGemm
from .reduction import Reduction
from .spanned_involution import SpannedInvolution
from .winograd import Winograd

__all__ = ["Elementwise", "Involution", "PackedGemm", "Reduction", "SpannedInvolution", "Winograd"]
