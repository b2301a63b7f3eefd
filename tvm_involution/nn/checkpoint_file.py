# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's file says: the state dict that is wanted of it, and the classes and preprocessing beside it.

No file ever runs code. A file's sums are checked where it has some: a zip archive's entries do; safetensors and files
from before torch 1.6 do not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from .torch_file import Foreign, Unfit, read_torch_file

_CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema_state_dict")
"""where trainers put state dicts, the one to take first"""
_INDEX = ".index.json"
_PIXELS = re.compile(r"(?:^|\.)data_preprocessor\.(mean|std)$")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, and what its file says beside it."""

    name: str
    """of the file, for messages"""
    state: Mapping[str, Any]
    """tensors by name, and `Unfit` or `Foreign` where something else lies in the file"""
    classes: tuple[str, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    """of the classes, red, green and blue"""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    """of mmengine's `data_preprocessor`"""
    notes: tuple[str, ...] = ()
    """a line each: what was taken where there was a choice"""


def read_checkpoint(source: str | os.PathLike[str] | Mapping[str, Any], key: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a file of `torch.save`, `.safetensors`, or the `.index.json` of safetensors in several files; or what
            such a file holds.
        key: which of several state dicts to take. By default the first there is of `state_dict`, `model_state_dict`,
            `model`, `state_dict_ema`, `ema_state_dict`, then of others in the file's order.

    Raises:
        UserError: a missing, damaged or foreign file, one without a state dict, or without one called `key`.
    """
    if isinstance(source, Mapping):
        name, content = "the state dict", source
    else:
        name, content = os.fspath(source), _read(Path(source))
    state, notes = _choose(content, name, key)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    classes, colours = _classes(meta, content)
    pixels = {found[1]: _three(value) for entry, value in state.items() if (found := _PIXELS.search(entry))}
    mean, std = pixels.get("mean"), pixels.get("std")
    return Checkpoint(name, state, classes, colours, mean, std if mean else None, tuple(notes))


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"checkpoint {file} is no file; name a .pth, .pt or .safetensors file")
    lowered = file.name.lower()
    if lowered.endswith(_INDEX):
        return _read_shards(file)
    if lowered.endswith(".safetensors"):
        return _read_safetensors(file)
    try:
        return read_torch_file(file)
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise whatever their bytes lead the reader to
        raise UserError(
            f"{file} is no checkpoint, or is truncated; expected what torch.save or safetensors wrote, whole"
        ) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # what a damaged header may name is more than the reader's own errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is no safetensors file, or is truncated: {reason}; fetch it again") from error


def _read_shards(file: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names; they lie beside it."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, shard in index.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.lower().endswith(".safetensors"):
                raise ValueError(f"{shard!a:.80} is no name of a safetensors file")
            shards.setdefault(shard, []).append(name)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file} is no index of safetensors files ({reason}); expected a weight_map from names to files"
        ) from error
    state: dict[str, Tensor] = {}
    for shard, names in shards.items():
        if not (file.parent / shard).is_file():
            raise UserError(f"{file} names {shard}, which is not beside it; fetch all {len(shards)} files")
        tensors = _read_safetensors(file.parent / shard)
        if missing := [name for name in names if name not in tensors]:
            raise UserError(f"{file} says that {missing[0]:.200} is in {shard}, which lacks it; fetch them again")
        state |= {name: tensors[name] for name in names}
    return state


def _choose(content: Any, name: str, key: str | None) -> tuple[Mapping[str, Any], list[str]]:
    """Return the state dict to take, and what to say of the choice."""
    top = content if isinstance(content, Mapping) else {}
    found = [entry for entry, value in top.items() if isinstance(entry, str) and _is_state(value)]
    found.sort(key=lambda entry: _CONTAINERS.index(entry) if entry in _CONTAINERS else len(_CONTAINERS))
    if key is not None:
        if key not in found:
            raise UserError(f"{name} has no state dict {key!r:.80}; it has {', '.join(found)[:400] or 'one alone'}")
        found.sort(key=lambda entry: entry != key)
    if found:
        others = ", ".join(found[1:])
        return top[found[0]], [f"of {name} {found[0]} was taken; there are also {others}"] if others else []
    if _is_state(content):
        return content, []
    objects = (content, *(top.get(entry) for entry in (*_CONTAINERS, "ema", "module")))
    foreign = next((value.origin for value in objects if isinstance(value, Foreign)), None)
    what = f"but {foreign:.200}, whose code is not run; save its state dict" if foreign else ""
    raise UserError(
        f"{name} holds no state dict, {what}"
        if what
        else f"{name} holds no state dict; expected names with tensors, or a `state_dict` entry with them"
    )


def _is_state(value: Any) -> bool:
    """Return whether `value` has tensors by name, whatever else it has."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(entry, (Tensor, Unfit)) for entry in value.values())
    )


def _classes(*places: Any) -> tuple[tuple[str, ...] | None, tuple[tuple[int, int, int], ...] | None]:
    """Return the names and colours of classes that a file tells, as mmcv and mmengine write them."""
    for place in places:
        if not isinstance(place, Mapping):
            continue
        for table in (place.get("dataset_meta"), place):
            lowered = (
                {k.lower(): v for k, v in table.items() if isinstance(k, str)} if isinstance(table, Mapping) else {}
            )
            names = lowered.get("classes")
            if isinstance(names, (list, tuple)) and names and all(_is_name(name) for name in names):
                colours = lowered.get("palette")
                if not isinstance(colours, (list, tuple)) or len(colours) != len(names):
                    return tuple(names), None
                fit = all(isinstance(c, (list, tuple)) and len(c) == 3 and all(map(_is_byte, c)) for c in colours)
                return tuple(names), tuple((c[0], c[1], c[2]) for c in colours) if fit else None
    return None, None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) < 4096


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value < 256


def _three(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, Tensor) or value.numel() != 3 or value.is_complex() or value.is_meta:
        return None
    first, second, third = (float(x) for x in value.detach().flatten().tolist())
    return first, second, third
