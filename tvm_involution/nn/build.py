# SPDX-License-Identifier: Apache-2.0
"""From the zoo's data to modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import checked
from ..errors import UserError
from ..zoo import ModelSpec, get_model
from .attention_resnet import AttentionResNet
from .checkpoint import fit_names, load_checkpoint
from .classifier import ImageClassifier
from .detector import faster_rcnn, mask_rcnn, retinanet
from .involution import Involution
from .rednet import RedNet
from .resnet import ResNet
from .segmentor import semantic_fpn, upernet


def _rednet(num_classes: int = 1000, **arguments: Any) -> nn.Module:
    return ImageClassifier(RedNet(**arguments), num_classes)


# `builder` in models/*.toml -> what makes the module of the other entries of [network]
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "rednet": _rednet,
    "resnet": ResNet,
    "attention_resnet": AttentionResNet,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "retinanet": retinanet,
    "semantic_fpn": semantic_fpn,
    "upernet": upernet,
}


@checked
def build_model(model: str | ModelSpec, *, seed: int = 0, pretrained: bool = True) -> nn.Module:
    """Return a zoo network in evaluation mode, with its shipped weights, else initialized from `seed`.

    Args:
        pretrained: load the weights that ship with the zoo, where there are some.

    Raises:
        UserError: unknown name, or a builder that does not exist or does not take the zoo's arguments.
    """
    spec = get_model(model) if isinstance(model, str) else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _build(spec)
        init_weights(module)
    if pretrained and spec.weights_file is not None:
        load_checkpoint(module, spec.weights_file)
    return module.eval()


def count_classes(spec: ModelSpec, state: Mapping[str, Any]) -> int | None:
    """Return how many classes the head of a checkpoint for `spec` has; None where it does not tell.

    It is told by those tensors whose shapes change with `num_classes`.
    """
    if (own := spec.network.get("num_classes")) is None:
        return None
    with torch.device("meta"):
        few, more = (_build(with_classes(spec, count)) for count in (own, own + 1))
    larger = more.state_dict()
    fitted = fit_names(few, state)
    for name, tensor in fitted.target.state_dict().items() if fitted.target is few else ():
        size, step = tensor.shape[:1], larger[name].shape[:1]
        given = fitted.state.get(name)
        if size == step or not isinstance(given, Tensor) or given.dim() != tensor.dim():
            continue
        each = step[0] - size[0]
        count, rest = divmod(given.shape[0] - (size[0] - own * each), each)
        return count if count > 0 and not rest and given.shape[1:] == tensor.shape[1:] else None
    return None


def with_classes(spec: ModelSpec, num_classes: int) -> ModelSpec:
    """Return a network of the zoo with another number of classes, whose weights and names are not the zoo's."""
    if num_classes == spec.network.get("num_classes"):
        return spec
    network = {**spec.network, "num_classes": num_classes}
    return replace(spec, network=network, weights_file=None, classes=None, class_ids=None, colours=None)


def _build(spec: ModelSpec) -> nn.Module:
    where = f"[network] of {spec.name}.toml"
    if spec.builder not in BUILDERS:
        raise UserError(f"{where}: no builder {spec.builder!r}, expected one of {', '.join(BUILDERS)}")
    try:
        return BUILDERS[spec.builder](**spec.network)
    except (TypeError, UserError) as error:
        raise UserError(f"{where}: builder {spec.builder!r} does not take these arguments ({error})") from error


def init_weights(module: nn.Module) -> None:
    """Initialize as the official code does (He, fan out), except that no branch starts at zero.

    `zero_init_residual` would make every untrained block an identity, and a comparison of compiled and original
    network blind to it. The last batch norm of a branch starts at 1 / sqrt(number of branches) instead, which keeps
    activations near one through 152 layers; running statistics start away from 0 and 1, so folding them matters.
    """
    branches: list[Any] = [m for m in module.modules() if hasattr(m, "bn3")]
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.01)
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(part.weight, 0.8, 1.2)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(_buffer(part.running_mean), std=0.1)
            nn.init.uniform_(_buffer(part.running_var), 0.8, 1.2)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)
    for part in branches:
        part.bn3.weight.data.mul_(1 / math.sqrt(len(branches)))
    for part in module.modules():
        if isinstance(part, Involution):
            # a window of so many taps of unit variance, each with an unscaled kernel, would grow by their root a layer
            part.conv2.conv.weight.data.mul_(1 / math.sqrt(math.prod(part.kernel_size)))


def _buffer(buffer: Tensor | None) -> Tensor:
    """Return a running statistic, which torch types as optional."""
    assert buffer is not None
    return buffer
