# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules of involution networks, with OpenMMLab's parameter names."""

from .attention import LocalAttention2d, local_attention2d
from .attention_resnet import AttentionResNet
from .build import build_model
from .checkpoint import load_checkpoint
from .classifier import ImageClassifier, LinearClsHead
from .compiled_kernels import use_kernels, wait_for_kernels
from .complexity import Operations, count_operations, count_parameters
from .conv_module import ConvModule
from .detector import SingleStageDetector, TwoStageDetector
from .fpn import FPN, InvolutionFPN
from .involution import Involution1d, Involution2d, Involution3d
from .model_folder import from_pretrained, save_pretrained
from .nms import nms
from .ops import involution1d, involution2d, involution3d
from .paste_masks import paste_masks
from .rednet import Bottleneck, RedNet
from .replace_involutions import replace_involutions
from .resnet import ResNet
from .roi_align import roi_align
from .segmentor import Segmentor

__all__ = [
    "FPN",
    "AttentionResNet",
    "Bottleneck",
    "ConvModule",
    "ImageClassifier",
    "Involution1d",
    "Involution2d",
    "Involution3d",
    "InvolutionFPN",
    "LinearClsHead",
    "LocalAttention2d",
    "Operations",
    "RedNet",
    "ResNet",
    "Segmentor",
    "SingleStageDetector",
    "TwoStageDetector",
    "build_model",
    "count_operations",
    "count_parameters",
    "from_pretrained",
    "involution1d",
    "involution2d",
    "involution3d",
    "load_checkpoint",
    "local_attention2d",
    "nms",
    "paste_masks",
    "replace_involutions",
    "roi_align",
    "save_pretrained",
    "use_kernels",
    "wait_for_kernels",
]
