# SPDX-License-Identifier: Apache-2.0
"""What the detectors and segmentors stand on: the four maps of a backbone of 50 layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..errors import UserError
from .rednet import RedNet
from .resnet import ResNetBackbone

CHANNELS = (256, 512, 1024, 2048)
"""of the maps, with strides 4, 8, 16 and 32"""

# `backbone` in models/*.toml
_BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "rednet": lambda: RedNet(50, stem_kernel_size=7, out_indices=(0, 1, 2, 3)),
    "resnet": lambda: ResNetBackbone(50, out_indices=(0, 1, 2, 3)),
    "resnet_v1c": lambda: ResNetBackbone(50, deep_stem=True, out_indices=(0, 1, 2, 3)),
}


def build_backbone(name: str) -> nn.Module:
    """Return RedNet-50 (`rednet`), or what it is measured against, ResNet-50.

    That is `resnet` as in mmdet, or `resnet_v1c` as in mmseg, which begins with three 3x3 convolutions.

    Raises:
        UserError: another name.
    """
    if name not in _BACKBONES:
        raise UserError(f"no backbone {name!r}; expected one of {', '.join(_BACKBONES)}")
    return _BACKBONES[name]()
