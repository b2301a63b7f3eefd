# SPDX-License-Identifier: Apache-2.0
"""Load the program of a `.pt2` file of `torch.export.save` without running anything from it.

`torch.export.load` trusts its file: it unpickles sample inputs and weights without restriction, loads compiled code,
evaluates shapes as expressions, and names of the graph end in Python source that PyTorch executes. So the archive is
vetted and written anew in memory, with what was vetted and nothing else, and only that copy is loaded: two readers that
see two things in one zip file cannot be played off against each other.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UserError
from ..zip_archives import open_archive
from .other_files import what_else

_HINT = "write it with torch.export.save"
_PROGRAM = "models/model.json"
_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")
# weights and constants as raw bytes, with tables of what they are
_TABLE = re.compile(r"data/(weights|constants)/model_\1_config\.json")
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_PICKLE = re.compile(r"data/(sample_inputs|weights|constants)/model\.pt")

_IDENTIFIER = re.compile(r"(?:[^\W\d]\w*)?")
# parameters' names may have what a ModuleDict's keys have, but nothing that ends a string or a call
_NAME = re.compile(r"[\w.\-+<>=:/ ]*")
_TEXT_KEYS = {"as_string", "as_strings", "metadata"}
_IDENTIFIER_KEYS = {"name", "forward_arg_names", "field_names"}
# tables whose keys are names of the graph, not of the format
_TABLES = {
    *("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values"),
    *("range_constraints", "treespec_namedtuple_fields", "as_string_to_argument", "opset_version"),
}
# what sizes are written with: sympy's `srepr`, of its classes and of PyTorch's
_WORDS = (
    "Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Abs|Equality|Unequality|LessThan|StrictLessThan|GreaterThan|"
    "StrictGreaterThan|And|Or|Not|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|"
    "LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|"
    "ToFloat|Identity|True|False|true|false|positive|nonnegative|negative|nonzero|zero|integer|real|finite|precision"
)
_EXPRESSION = re.compile(
    rf"(?:\b(?:{_WORDS}|[a-z]+\d+)\b|'[a-z]*[\d.]+'|"
    r"(?<![\w.])\d{1,19}(?:\.\d{0,19})?(?![\w.])|[\s+\-*/%(),<>=!&|~])*"
)
_FUNCTION = re.compile(
    r"_operator\.(?:eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|lshift|rshift|getitem)|"
    r"math\.trunc|torch\.sym_\w+"
)
_OPERATOR = re.compile(r"torch\.ops\.(?!_)\w+\.\w+(?:\.\w+)?")
# operators that read or write files by name
_FILES = {"from_file", "save"}
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Return the program of the `.pt2` file `path`.

    Raises:
        UserError: no such file, another kind of file, damaged, or one that would run code.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file that torch.export.save wrote")
    if (other := what_else(path)) is not None:
        raise UserError(f"{path} is {other}")
    with open_archive(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    try:
        import torch.ao.quantization.fx._decomposed  # registers the operators of what PT2E quantized

        members = _vetted(_without_folder(files))
        with _quiet():
            return torch.export.load(_archive(members))
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except Exception as error:  # the archive's reader raises whatever its parts raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read {path}: {reason}; {_HINT}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from logging what it raises, too, with a traceback."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _without_folder(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the members by name, without the folder that they all lie in."""
    if "serialized_exported_program.json" in files:
        raise UserError("it was written by PyTorch 2.7 or older; export the module again")
    root = next(iter(files), "").partition("/")[0]
    if any(name.partition("/")[0] != root or ".." in name.split("/") for name in files):
        raise UserError(f"its members do not lie in one folder; {_HINT}")
    return {name.partition("/")[2]: data for name, data in files.items()}


def _vetted(members: dict[str, bytes]) -> dict[str, bytes]:
    """Return what a program needs of `members`, in a form that runs nothing.

    Raises:
        UserError: it would run code, or is no program.
    """
    if any(name.startswith("data/aotinductor/") for name in members):
        raise UserError("it holds compiled code of AOTInductor; export the module with torch.export.save")
    if _PROGRAM not in members:
        raise UserError(f"it holds no program called `model`; {_HINT}")
    pickled = {payload for name in members if _TABLE.fullmatch(name) for payload in _pickled_payloads(name, members)}
    kept: dict[str, bytes] = {}
    for name, data in members.items():
        if name == _PROGRAM:
            program = json.loads(data)
            program["guards_code"] = []  # Python source, which nobody here asks for
            # PyTorch looks symbols up, and leaves out the expressions of them that stand there, too, as 4*s1
            ranges = program.get("range_constraints", {})
            program["range_constraints"] = {name: r for name, r in ranges.items() if _IDENTIFIER.fullmatch(name)}
            _check_program(program)
            kept[name] = json.dumps(_on_cpu(program)).encode()
        elif _PICKLE.fullmatch(name) or name in pickled:
            kept[name] = _pickled_anew(data)
        elif _TABLE.fullmatch(name):
            kept[name] = json.dumps(_on_cpu(json.loads(data))).encode()
        elif _TENSOR.fullmatch(name) or name in _PLAIN:
            kept[name] = data
    return kept


def _on_cpu(value: Any) -> Any:
    """Return JSON of the format with the CPU for every device; libraries for GPUs are made on it, too."""
    if isinstance(value, list):
        return [_on_cpu(entry) for entry in value]
    if isinstance(value, dict):
        if value.keys() == {"type", "index"} and value["type"] == "cuda":
            return {"type": "cpu", "index": None}
        return {name: _on_cpu(entry) for name, entry in value.items()}
    return value


def _pickled_payloads(table: str, members: dict[str, bytes]) -> list[str]:
    """Return the members that the table of weights or constants says to be pickled.

    Raises:
        UserError: it names an object that is no tensor, whose pickle would be read without restriction.
    """
    folder = table.rpartition("/")[0]
    payloads = {f"{folder}/{e['path_name']}": e["use_pickle"] for e in json.loads(members[table])["config"].values()}
    for payload in payloads:
        _check(_TENSOR.fullmatch(payload), "an object", payload)
    return [payload for payload, is_pickled in payloads.items() if is_pickled]


def _archive(members: dict[str, bytes]) -> io.BytesIO:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"model/{name}", data)
    written.seek(0)
    return written


def _pickled_anew(data: bytes) -> bytes:
    """Return a pickle of what the weights-only unpickler reads in `data`."""
    if not data:
        return data
    try:
        value = torch.load(io.BytesIO(data), weights_only=True, map_location=_mapped)
    except Exception as error:
        raise UserError(
            "it holds a pickle of more than tensors, which could run code and is not read; export the module again, "
            "with tensors alone as example inputs"
        ) from error
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def _mapped(storage: Any, location: str) -> Any:
    """Return what takes the place of a pickled tensor's memory: of one on a GPU, memory of the CPU."""
    return storage if location.startswith("cuda") else None


def _check_program(program: Any) -> None:
    """Check every string of the program by the place where it stands."""
    for key, text in _strings(program):
        if key in ("target", "as_operator"):
            _check(_is_operator(text), "an operator", text)
        elif key == "expr_str":
            _check(len(text) < 1000 and _EXPRESSION.fullmatch(text), "a size", text)
        elif key in ("in_spec", "out_spec"):
            _check_tree(json.loads(text)[1], text)
        elif key in _IDENTIFIER_KEYS:
            _check(_IDENTIFIER.fullmatch(text), "a name", text)
        elif key not in _TEXT_KEYS:
            _check(_NAME.fullmatch(text), "a name", text)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each string with the key of the format under which it, or the list that it is in, stands."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry, key)
    elif isinstance(value, dict) and key != "metadata":
        for name, entry in value.items():
            if key in _TABLES:
                yield "name", name
                yield from _strings(entry)
            else:
                _check(name != "as_custom_obj" or entry is None, "an object", name)
                yield from _strings(entry, name)


def _is_operator(target: str) -> bool:
    if _FUNCTION.fullmatch(target):
        return True
    if not _OPERATOR.fullmatch(target):
        return False
    _, _, namespace, name, *_ = target.split(".")
    return isinstance(getattr(torch.ops, namespace), ModuleType) and name not in _FILES


def _check_tree(tree: Any, text: str) -> None:
    """Check that nested inputs or outputs are of Python's own containers: others name modules to import."""
    _check(tree["type"] in _CONTAINERS and "__enum__" not in str(tree["context"]), "a container", text)
    for child in tree["children_spec"]:
        _check_tree(child, text)


def _check(fine: object, what: str, text: str) -> None:
    if not fine:
        shown = text if len(text) <= 60 else text[:60] + "…"
        raise UserError(f"{shown!r} is {what} that could run code, and is not read; {_HINT}")
