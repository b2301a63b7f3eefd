# SPDX-License-Identifier: Apache-2.0
"""WHAT is computed: involution and what belongs to it as TVM tensor expressions. No schedule is known here."""

from .attention import local_attention2d
from .convolution import conv2d_packed, matmul_packed, pack_weight
from .gradient import involution2d_grad_input, involution2d_grad_kernel
from .involution import involution2d, involution2d_output_size
from .kernel_generation import BatchNorm, KernelGenerator, generate_kernel, generated_involution2d, spanned_involution2d
from .nms import nms
from .paste_masks import paste_masks
from .roi_align import roi_align

__all__ = [
    "BatchNorm",
    "KernelGenerator",
    "conv2d_packed",
    "generate_kernel",
    "generated_involution2d",
    "involution2d",
    "involution2d_grad_input",
    "involution2d_grad_kernel",
    "involution2d_output_size",
    "local_attention2d",
    "matmul_packed",
    "nms",
    "pack_weight",
    "paste_masks",
    "roi_align",
    "spanned_involution2d",
]
