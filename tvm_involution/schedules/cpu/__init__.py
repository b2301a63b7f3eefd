# SPDX-License-Identifier: Apache-2.0
"""Schedule rules for CPUs, one a file."""

from .amx_gemm import AmxGemm
from .depthwise_convolution import DepthwiseConvolution
from .elementwise import Elementwise
from .interpolation import Interpolation
from .involution import Involution
from .local_attention import LocalAttention
from .nms import NMS
from .packed_gemm import PackedGemm
from .paste_masks import PasteMasks
from .reduction import Reduction
from .roi_align import RoIAlign
from .rows import Rows
from .spanned_involution import SpannedInvolution
from .strassen import Strassen
from .winograd import Winograd

__all__ = [
    "NMS",
    "AmxGemm",
    "DepthwiseConvolution",
    "Elementwise",
    "Interpolation",
    "Involution",
    "LocalAttention",
    "PackedGemm",
    "PasteMasks",
    "Reduction",
    "RoIAlign",
    "Rows",
    "SpannedInvolution",
    "Strassen",
    "Winograd",
]
