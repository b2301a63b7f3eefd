# SPDX-License-Identifier: Apache-2.0
"""Schedule rules for NVIDIA GPUs, one a file."""

from .cuda_core_gemm import CudaCoreGemm
from .dlight_fallback import DlightFallback
from .fusion import fusing_pays, fusing_pays_on_cuda_cores, fusing_works
from .involution import Involution
from .involution_nchw import InvolutionNCHW
from .local_attention import LocalAttention
from .mma_intrinsics import mma_fragments, register_mma_intrinsics
from .nms import NMS
from .reduction import Reduction
from .spanned_involution import SpannedInvolution
from .tensor_core_gemm import TensorCoreGemm
from .tensor_core_involution import TensorCoreInvolution
from .thread_per_output import ThreadPerOutput

__all__ = [
    "NMS",
    "CudaCoreGemm",
    "DlightFallback",
    "Involution",
    "InvolutionNCHW",
    "LocalAttention",
    "Reduction",
    "SpannedInvolution",
    "TensorCoreGemm",
    "TensorCoreInvolution",
    "ThreadPerOutput",
    "fusing_pays",
    "fusing_pays_on_cuda_cores",
    "fusing_works",
    "mma_fragments",
    "register_mma_intrinsics",
]
