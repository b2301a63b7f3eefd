# SPDX-License-Identifier: Apache-2.0
"""Fill a network with a checkpoint's weights, whatever wrapped it when it was saved.

Nothing is taken that the network would compute nonsense with: every tensor must be there, of its shape, and every
value a finite number.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import checked
from ..errors import UserError
from .checkpoint_file import Checkpoint, read_checkpoint
from .torch_file import Foreign, Unfit

_SHOWN, _NEAREST = 4, 5
_COUNTER = "num_batches_tracked"
# of torch's AveragedModel and mmengine's, beside the network they wrap
_WRAPPERS_OWN = ("n_averaged", "steps")
_COMPILED = "_orig_mod."
# DataParallel and averaged models, modules of trainers
_WRAPPERS = ("module.", "model.", "net.")
_PREPROCESSOR = "data_preprocessor."


@checked
def load_checkpoint(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any] | Checkpoint, *, key: str | None = None
) -> tuple[str, ...]:
    """Fill `model` from a file or a state dict; the model is left as it was where anything does not fit.

    Takes files of `torch.save`, of which nothing is run, with a state dict in `state_dict`, `model`,
    `model_state_dict`, `ema_state_dict` or `state_dict_ema`, or bare; `.safetensors`, and the `.index.json` of several.
    `module.`, `model.`, `net.` and `_orig_mod.` before the names are dropped where they wrap the network, and so is
    what lies outside; so are mmengine's `data_preprocessor.` and the `ema_...` buffers of mmcv's EMAHook. A backbone's
    own checkpoint, without `backbone.`, fills the backbone alone. `num_batches_tracked` may be missing.

    Args:
        key: which of several state dicts to take, see `read_checkpoint`.

    Returns:
        What was chosen or left out, a line each.

    Raises:
        UserError: a missing, damaged or foreign file, or one with missing, surplus or wrongly shaped tensors, with
            others than real numbers in plain memory where floats are expected, or with values that are not finite in
            the model's dtype; listed by name, with the five nearest names.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, key)
    fitted = fit_names(model, checkpoint.state)
    _check(fitted.target, fitted.state, checkpoint.name)
    fitted.target.load_state_dict(fitted.state, strict=False)
    return (*checkpoint.notes, *fitted.notes)


@dataclass(frozen=True)
class Fitted:
    """A state dict under a module's own names; what it holds has not been looked at."""

    target: nn.Module
    """the model, or its backbone"""
    state: dict[str, Any]
    notes: tuple[str, ...]


def fit_names(model: nn.Module, state: Mapping[str, Any]) -> Fitted:
    """Return the state dict without what wrapped the network, by the names of `model` that it then has."""
    backbone = getattr(model, "backbone", None)
    best: tuple[int, nn.Module, dict[str, Any], str] | None = None
    for inner, wrapper in _unwrapped(dict(state)):
        target = model
        if isinstance(backbone, nn.Module) and not any(name.startswith("backbone.") for name in inner):
            target = backbone
        shared = len(target.state_dict().keys() & inner.keys())
        if best is None or shared > best[0]:
            best = shared, target, inner, wrapper
    assert best is not None
    _, target, inner, wrapper = best
    own = target.state_dict()
    notes = []
    if target is not model:
        notes.append(f"the checkpoint is of the backbone alone: the rest of {type(model).__name__} is as it was")
    inside = [name for name in state if _plain(name).startswith(wrapper)]
    if outside := [name for name in state if name not in inside and name not in _WRAPPERS_OWN]:
        notes.append(f"left out, as they are not in {wrapper}: {_shorten(outside)}")
    parameters = {f"ema_{name.replace('.', '_')}" for name in own}
    if averages := [name for name in inner if name not in own and name in parameters]:
        notes.append(f"left out: {len(averages)} buffers ema_... of EMAHook")
    left_out = {*averages, *(name for name in inner if name not in own and name.startswith(_PREPROCESSOR))}
    fitted = {name: value for name, value in inner.items() if name not in left_out and not _is_extra(name, value)}
    return Fitted(target, fitted, tuple(notes))


def _is_extra(name: str, value: Any) -> bool:
    """Return whether an entry is a module's extra state, which torch writes beside the tensors."""
    return name.endswith("_extra_state") and not isinstance(value, Tensor)


def _unwrapped(state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a state dict, and what is left of it without one wrapper after another around most of its names."""
    yield state, ""
    plain = {_plain(name): value for name, value in state.items()}
    if len(plain) == len(state) and plain.keys() != state.keys():
        state = plain
        yield state, ""
    dropped = ""
    while wrapper := next((w for w in _WRAPPERS if 2 * sum(n.startswith(w) for n in state) > len(state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items() if name.startswith(wrapper)}
        dropped += wrapper
        yield state, dropped


def _plain(name: str) -> str:
    """Return a name without what torch.compile adds, wherever in it that is."""
    return name.replace(_COMPILED, "")


def _check(model: nn.Module, state: dict[str, Any], name: str) -> None:
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
        near = _nearest(problems, list(own), list(state))
        raise UserError(f"{name} does not fit {type(model).__name__}: {_listed(problems)}{near}")
    if strange:
        wrong = [f"{entry} is {what}" for entry, what in strange.items()]
        raise UserError(
            f"{name} cannot be loaded: {_listed({'wrong kind': wrong})}; expected plain tensors, of floats for weights"
        )
    if infinite := [entry for entry in shared if not _is_finite(state[entry], own[entry].dtype)]:
        raise UserError(
            f"{name} cannot be loaded: {_listed({'not finite': infinite})}; it was damaged, or its training diverged"
        )


def _nearest(problems: Mapping[str, list[str]], own: list[str], given: list[str]) -> str:
    """Return the names nearest to the first that does not fit, from the other side."""
    if problems["missing"]:
        wanted, pool, where = problems["missing"][0], problems["surplus"] or given, "the file"
    elif problems["surplus"]:
        wanted, pool, where = problems["surplus"][0], own, "the network"
    else:
        return "; for another number of classes say --num-classes, for other sizes name the network they are of"
    pool = [name for name in pool if len(name) < 200][:5000]
    near = difflib.get_close_matches(wanted[:200], pool, n=_NEAREST, cutoff=0)
    return f"; nearest to {_shown(wanted)} in {where}: {', '.join(map(_shown, near))}"


def _strangeness(tensor: Any, own: Tensor) -> str:
    """Return what is wrong with the kind of what shall fill `own`; nothing where it will do."""
    if isinstance(tensor, Unfit):
        return tensor.kind
    if isinstance(tensor, Foreign):
        return f"a {_shown(tensor.origin)}"
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


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(map(_shown, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _shown(name: str) -> str:
    return (name if name.isprintable() else ascii(name))[:200]
