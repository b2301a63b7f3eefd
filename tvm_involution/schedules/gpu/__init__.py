# SPDX-License-Identifier: Apache-2.0
"""Schedule rules for NVIDIA GPUs, one a file."""

from .dlight_fallback import DlightFallback
from .involution import Involution
from .involution_nchw import InvolutionNCHW
from .spanned_involution import SpannedInvolution
from .thread_per_output import ThreadPerOutput

__all__ = ["DlightFallback", "Involution", "InvolutionNCHW", "SpannedInvolution", "ThreadPerOutput"]
