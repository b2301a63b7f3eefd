# SPDX-License-Identifier: Apache-2.0
"""Schedule rules for NVIDIA GPUs, one a file."""

from .dlight_fallback import DlightFallback
from .nms import NMS
from .thread_per_output import ThreadPerOutput

__all__ = ["NMS", "DlightFallback", "ThreadPerOutput"]
