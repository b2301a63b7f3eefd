# SPDX-License-Identifier: Apache-2.0
"""RedNets in timm's registry: `import tvm_involution.timm`, then `timm.create_model("rednet50.tvm_involution")`.

Modules keep OpenMMLab's parameter names (`backbone.layer1.0.conv2.conv1.conv.weight`, `head.fc.weight`), so official
checkpoints load as they are: `pretrained=True, pretrained_cfg_overlay={"file": "rednet50.pth"}`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import timm.models
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .nn.classifier import LinearClsHead
from .nn.model_folder import preprocessing_of
from .nn.rednet import STAGE_BLOCKS, RedNet
from .zoo import get_model

TAG = "tvm_involution"


class RedNetClassifier(nn.Module):
    """`backbone`, global average pooling and `head`, with the methods that timm's own networks have.

    Args:
        num_classes: 0 for no head.
        in_chans: of the picture.
        drop_rate: of the dropout before the head.
        global_pool: `avg`, or an empty string for feature maps instead of a vector.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.backbone = RedNet(depth, in_channels=in_chans)
        self.num_features = self.head_hidden_size = self.backbone.out_channels
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, drop_rate, False
        self.feature_info = [{"num_chs": 64, "reduction": 2, "module": "backbone.stem"}]
        for stage in range(4):
            name = f"backbone.layer{stage + 1}"
            self.feature_info.append({"num_chs": 256 << stage, "reduction": 4 << stage, "module": name})
        self.global_pool = global_pool
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head.fc if isinstance(self.head, LinearClsHead) else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new head, none for 0 classes."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        if self.global_pool not in ("avg", "") or (num_classes and not self.global_pool):
            raise ValueError(f"global_pool must be avg, or empty without classes, got {self.global_pool!r}")
        self.head: nn.Module = LinearClsHead(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the activations of blocks again in the backward pass, instead of keeping them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters are grouped into layers, for learning rates that fall with depth."""
        blocks = r"^backbone\.layer(\d+)" if coarse else r"^backbone\.layer(\d+)\.(\d+)"
        return {"stem": r"^backbone\.stem", "blocks": blocks}

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> the last stage's feature map."""
        return self.forward_intermediates(x, indices=[])[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map; with `pre_logits` return that."""
        x = x.mean((2, 3)) if self.global_pool else x
        x = nn.functional.dropout(x, self.drop_rate, self.training) if self.drop_rate else x
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the last feature map and those of `indices`: 0 is the stem's, 1 to 4 the stages'."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        taken, last = self._take(indices)
        x = self.backbone.stem(x)
        found = [x] if 0 in taken else []
        x = self.backbone.maxpool(x)
        for number, name in enumerate(self.backbone.stages, 1):
            if number > last and stop_early:
                break
            for block in getattr(self.backbone, name):
                again = self.grad_checkpointing and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            if number in taken:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of `indices`, and the head."""
        taken, last = self._take(indices)
        for name in self.backbone.stages[last:]:
            delattr(self.backbone, name)
        self.backbone.stages = self.backbone.stages[:last]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _take(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Return which feature maps are meant, and the last stage that they need: all without any."""
        maps = range(len(self.feature_info))
        if indices is None or isinstance(indices, int):
            taken = list(maps)[-(indices or len(maps)) :]
        else:
            taken = [maps[index] for index in indices]
        return taken, max(taken, default=len(self.backbone.stages))


def _pretrained_cfg(name: str) -> dict[str, Any]:
    """Return how pictures are prepared for a network of the zoo, and where its layers are."""
    return {
        **preprocessing_of(get_model(name)),
        "num_classes": 1000,
        "first_conv": "backbone.stem.0.conv",
        "classifier": "head.fc",
        "pool_size": (7, 7),
        "license": "mit",
        "origin_url": "https://github.com/d-li14/involution",
        "paper_ids": "arXiv:2103.06255",
    }


_NAMES = [f"rednet{depth}" for depth in STAGE_BLOCKS]
default_cfgs = timm.models.generate_default_cfgs({f"{name}.{TAG}": _pretrained_cfg(name) for name in _NAMES})
__all__ = ["RedNetClassifier", *_NAMES]


def _register(depth: int) -> None:
    name = f"rednet{depth}"

    def create(pretrained: bool = False, **keywords: Any) -> nn.Module:
        return timm.models.build_model_with_cfg(
            *(RedNetClassifier, name, pretrained),
            feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
            depth=depth,
            **keywords,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"RedNet-{depth} of arXiv 2103.06255."
    setattr(sys.modules[__name__], name, timm.models.register_model(create))


for _depth in STAGE_BLOCKS:
    _register(_depth)
