# SPDX-License-Identifier: Apache-2.0
"""A network as a folder of `config.json` and `model.safetensors`, as model hubs keep them and timm reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..arguments import checked, shown
from ..errors import UserError
from ..files import atomic_write, write_json
from ..zoo import ModelSpec, get_model
from .build import build_model, count_classes, with_classes
from .checkpoint import load_checkpoint

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_LARGEST_CONFIG = 16 << 20


@checked
def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], name: str, *, classes: Sequence[str] | None = None
) -> None:
    """Write a network of the zoo, with whatever weights and number of classes, as a folder.

    `from_pretrained` reads it; and so does timm, once `tvm_involution.timm` is imported, where it is a RedNet:
    `timm.create_model("local-dir:FOLDER")`.

    Args:
        model: as `build_model` or `timm.create_model` made it.
        folder: made where there is none; the two files in it are replaced.
        name: of the network in the zoo.
        classes: names of the classes, if they are not the zoo's.

    Raises:
        UserError: the model is not that network, another number of names than classes, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    spec, state = get_model(name), model.state_dict()
    count = count_classes(spec, state)
    wanted = build_model(with_classes(spec, count) if count else spec, pretrained=False).state_dict()
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in wanted.items()}:
        raise UserError(f"save_pretrained: model {type(model).__name__} has not the parameters of {name}")
    names = classes if classes is not None else spec.classes if count == spec.network.get("num_classes") else None
    if names is not None and len(names) != count:
        raise UserError(f"save_pretrained: classes are {len(names)} names, the model has {count} classes")
    config = {
        "architecture": name,
        "num_classes": count or 0,
        "num_features": next((m.in_features for m in model.modules() if isinstance(m, nn.Linear)), 0),
        **({"label_names": list(names)} if names is not None else {}),
        "pretrained_cfg": {
            **preprocessing_of(spec),
            **{"tag": "tvm_involution", "first_conv": "backbone.stem.0.conv", "classifier": "head.fc"},
        },
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {shown(str(folder))}: {error.strerror}; name a folder") from error
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, temporary, {"format": "pt"})
    write_json(folder / CONFIG, config)


@checked
def from_pretrained(folder: str | os.PathLike[str]) -> nn.Module:
    """Return the network that `save_pretrained`, or timm for one of our RedNets, wrote, in evaluation mode.

    Raises:
        UserError: no such folder, a `config.json` that names no network of the zoo, or weights that do not fit.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    name, count = config.get("architecture"), config.get("num_classes")
    if not isinstance(name, str) or not isinstance(count, int):
        raise UserError(f"{folder / CONFIG}: architecture must be a name of the zoo, and num_classes a number")
    spec = get_model(name)
    model = build_model(with_classes(spec, count) if count else spec, pretrained=False)
    load_checkpoint(model, folder / WEIGHTS)
    return model


def preprocessing_of(spec: ModelSpec) -> dict[str, Any]:
    """Return how pictures are prepared for a network of the zoo, in the words of timm's `pretrained_cfg`."""
    given = spec.preprocessing or {}
    found: dict[str, Any] = {"input_size": (3, *spec.image_size), "interpolation": "bilinear"}
    for word in ("mean", "std"):
        if word in given:
            found[word] = tuple(value / 255 for value in given[word])
    if given.get("resize") and given.get("crop"):
        found["crop_pct"] = given["crop"] / given["resize"]
    return found


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise UserError(f"{shown(str(path))} has more than {_LARGEST_CONFIG >> 20} MiB; expected a config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {shown(str(path))}: {error.strerror}; expected a folder of {CONFIG} and {WEIGHTS}"
        ) from error
    except ValueError as error:
        raise UserError(f"{shown(str(path))} is no JSON ({error}); expected what save_pretrained writes") from error
    if not isinstance(config, dict):
        raise UserError(f"{shown(str(path))} holds no object; expected what save_pretrained writes")
    return config
