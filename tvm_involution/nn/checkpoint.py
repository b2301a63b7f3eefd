# SPDX-License-Identifier: Apache-2.0
"""Load weights: official OpenMMLab files, bare state dicts, safetensors. No file ever runs code.

Nothing is taken that the network would compute nonsense with: a file's sums are checked where it has some (a zip
archive's entries do; safetensors and files from before torch 1.6 do not), and every value must be a finite number.
"""

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
from ..zip_archives import check_archive, is_zip

_SHOWN = 4
_COUNTER = "num_batches_tracked"

# OpenMMLab's `meta` may hold NumPy scalars (a best score, a seed). Reading one only copies its bytes.
_scalar = np.float64().__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]


@checked
def load_checkpoint(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any]) -> None:
    """Fill `model` from a file or a state dict; the model is left as it was where anything does not fit.

    Takes `{"state_dict": ..., "meta": ...}` as OpenMMLab writes it, a bare state dict (read with `weights_only=True`),
    and `.safetensors`. A `module.` before the names (DataParallel) is dropped; a backbone's own checkpoint, without
    `backbone.`, fills the backbone alone. `num_batches_tracked` may be missing.

    Raises:
        UserError: a missing, damaged or foreign file, or one with missing, surplus or wrongly shaped tensors, with
            others than real numbers in plain memory where floats are expected, or with values that are not finite in
            the model's dtype; listed by name.
    """
    if isinstance(source, Mapping):
        name, content = "the state dict", source
    else:
        name, content = str(source), _read(Path(source))
    state = _strip_prefix(_state_dict(content, name), "module.")
    target: nn.Module = model
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module) and not any(entry.startswith("backbone.") for entry in state):
        target = backbone
    _check(target, state, name)
    target.load_state_dict(state, strict=False)


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise UserError(f"checkpoint {file} is no file; name a .pth, .pt or .safetensors file")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except Exception as error:  # what a damaged header may name is more than the reader's own errors
            raise UserError(
                f"{file} is no safetensors file, or is truncated: {_reason(error)}; fetch it again"
            ) from error
    try:
        if is_zip(file):
            check_archive(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # what torch would warn of ends in an error below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise whatever their bytes lead the reader to
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} holds {foreign[1]}, and reading that may run code, which is refused; save its state dict "
                "alone, best as .safetensors"
            ) from error
        raise UserError(
            f"{file} is no checkpoint, or is truncated; expected what torch.save or safetensors wrote, whole"
        ) from error
    return content


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    named = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not named or not content:
        raise UserError(f"{name} holds no state dict; expected names with tensors, or a `state_dict` entry with them")
    return dict(content)


def _strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if state and all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def _check(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    own = model.state_dict()
    shared = [entry for entry in own if entry in state]
    strange = {entry: what for entry in shared if (what := _strangeness(state[entry], own[entry]))}
    problems = {
        "missing": [entry for entry in own if entry not in state and not entry.endswith(_COUNTER)],
        "surplus": [entry for entry in state if entry not in own],
        "wrong shape": [
            f"{entry} {list(state[entry].shape)} instead of {list(own[entry].shape)}"
            for entry in shared
            if entry not in strange and state[entry].shape != own[entry].shape
        ],
    }
    if any(problems.values()):
        raise UserError(
            f"{name} does not fit {type(model).__name__}: {_listed(problems)}; is it a checkpoint of another network "
            "or depth?"
        )
    if strange:
        wrong = [f"{entry} is {what}" for entry, what in strange.items()]
        raise UserError(
            f"{name} cannot be loaded: {_listed({'wrong kind': wrong})}; expected plain tensors, of floats for weights"
        )
    if infinite := [entry for entry in shared if not _is_finite(state[entry], own[entry].dtype)]:
        raise UserError(
            f"{name} cannot be loaded: {_listed({'not finite': infinite})}; it was damaged, or its training diverged"
        )


def _strangeness(tensor: Tensor, own: Tensor) -> str:
    """Return what is wrong with the kind of a tensor that shall fill `own`; nothing where it will do."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta:
        return "on meta, without values"
    if own.is_complex():
        fits = tensor.is_floating_point() or tensor.is_complex()
    elif own.is_floating_point():
        fits = tensor.is_floating_point()
    else:
        # a counter of batches plays no part in inference, and who halves a state dict halves it too
        fits = not tensor.is_complex() and (not tensor.is_floating_point() or not own.dim())
    return "" if fits and not tensor.is_quantized else str(tensor.dtype).removeprefix("torch.")


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point or bool(tensor.to(dtype).isfinite().all())


def _listed(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{what} {len(names)}: {_shorten(names)}" for what, names in problems.items() if names)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
