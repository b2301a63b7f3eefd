# SPDX-License-Identifier: Apache-2.0
"""Load weights: official OpenMMLab files, bare state dicts, safetensors. No file ever runs code."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import checked
from ..errors import UserError

_SHOWN = 4

# OpenMMLab's `meta` may hold NumPy scalars (a best score, a seed). Reading one only copies its bytes.
_scalar = np.float64().__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]


@checked
def load_checkpoint(model: nn.Module, path: str | os.PathLike[str] | Mapping[str, Any]) -> None:
    """Fill `model` from a file, or what one holds; the model is left as it was where anything does not fit.

    Takes `{"state_dict": ..., "meta": ...}` as OpenMMLab writes it, a bare state dict (read with `weights_only=True`),
    and `.safetensors`. A `module.` before the names (DataParallel) is dropped; a backbone's own checkpoint, without
    `backbone.`, fills the backbone alone. `num_batches_tracked` may be missing.

    Raises:
        UserError: a missing, truncated or foreign file, or one with missing, surplus or wrongly shaped tensors,
            listed by name.
    """
    file = Path("the state dict" if isinstance(path, Mapping) else path)
    if not isinstance(path, Mapping) and not file.is_file():
        raise UserError(f"checkpoint {file} is no file; name a .pth, .pt or .safetensors file")
    state = _strip_prefix(_state_dict(path, file) if isinstance(path, Mapping) else _read(file), "module.")
    target: nn.Module = model
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module) and not any(name.startswith("backbone.") for name in state):
        target = backbone
    _check(target, state, file)
    target.load_state_dict(state, strict=False)


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is no safetensors file, or is truncated: {error}; fetch it again") from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # what torch would warn of ends in an error below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise whatever their bytes lead the reader to
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} holds {foreign[1]}, and reading that may run code, which is refused; save its state dict "
                "alone, best as .safetensors"
            ) from error
        raise UserError(
            f"{file} is no checkpoint, or is truncated; expected what torch.save or safetensors wrote, whole"
        ) from error
    return _state_dict(content, file)


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} holds no state dict; expected names with tensors, or a `state_dict` entry with them")
    return dict(content)


def _strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if state and all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def _check(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{what} {len(names)}: {_shorten(names)}"
        for what, names in (("missing", missing), ("surplus", surplus), ("wrong shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(
            f"{file} does not fit {type(model).__name__}: {'; '.join(problems)}; is it a checkpoint of another network "
            "or depth?"
        )


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
