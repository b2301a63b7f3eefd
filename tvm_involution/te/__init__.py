# SPDX-License-Identifier: Apache-2.0
"""WHAT is computed: involution and what belongs to it as TVM tensor expressions. No schedule is known here."""

from .attention import local_attention2d
from .convolution import conv2d_packed, matmul_packed, pack_grouped_weight, pack_weight
from .depthwise_convolution import depthwise_conv2d, pack_depthwise_weight
from .gemm_convolution import conv2d_gemm, pack_weight_gemm
from .gradient import involution2d_grad_input, involution2d_grad_kernel
from .im2col import conv2d_windows, joined_windows, matrix_windows
from .involution import involution, involution2d, involution2d_output_size
from .kernel_generation import BatchNorm, KernelGenerator, generate_kernel, generated_involution2d, spanned_involution2d
from .mma_convolution import MmaFragments, conv2d_mma, pack_weight_mma
from .mma_spanned_involution import pack_span_mma, spanned_involution2d_mma
from .nms import nms
from .paired_involution import pack_paired_span, paired_spanned_involution2d
from .paste_masks import paste_masks
from .roi_align import roi_align
from .strassen import conv2d_strassen, pack_strassen_weight
from .winograd import conv2d_winograd, pack_winograd_weight

__all__ = [
    "BatchNorm",
    "KernelGenerator",
    "MmaFragments",
    "conv2d_gemm",
    "conv2d_mma",
    "conv2d_packed",
    "conv2d_strassen",
    "conv2d_windows",
    "conv2d_winograd",
    "depthwise_conv2d",
    "generate_kernel",
    "generated_involution2d",
    "involution",
    "involution2d",
    "involution2d_grad_input",
    "involution2d_grad_kernel",
    "involution2d_output_size",
    "joined_windows",
    "local_attention2d",
    "matmul_packed",
    "matrix_windows",
    "nms",
    "pack_depthwise_weight",
    "pack_grouped_weight",
    "pack_paired_span",
    "pack_span_mma",
    "pack_strassen_weight",
    "pack_weight",
    "pack_weight_gemm",
    "pack_weight_mma",
    "pack_winograd_weight",
    "paired_spanned_involution2d",
    "paste_masks",
    "roi_align",
    "spanned_involution2d",
    "spanned_involution2d_mma",
]
