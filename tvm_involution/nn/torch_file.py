# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save`, read without importing or running anything that they name.

A pickle is a program that names functions and calls them. Here no name is looked up anywhere but in a table of this
file: what rebuilds tensors and dictionaries. Whatever else is named becomes a `Foreign`, and so does what is made of
it, called with it or set on it. So trainers' histories, configurations, times and paths are passed over, and tensors
and plain data are all that comes out.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..zip_archives import check_archive, is_zip, open_archive, read_entry

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128},
    "UntypedStorage": torch.uint8,
}


class Foreign(dict[Any, Any]):
    """An object of a class that is not read; `origin` is the class's or the function's full name.

    It keeps the items of a mapping, as those of a configuration, and nothing else.
    """

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin

    def ignore(self, *_: Any) -> None:
        """Do nothing: what would be appended to a list or added to a set is left out."""

    append = extend = add = ignore
    # it may be the key of a dictionary or in a set
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


@dataclass(frozen=True)
class Unfit:
    """A tensor that no network's weights can be."""

    kind: str
    """such as `sparse_coo`"""


@dataclass(frozen=True)
class _Known:
    """A function of the table."""

    call: Callable[..., Any]


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    data: memoryview
    dtype: torch.dtype


def read_torch_file(file: Path) -> Any:
    """Return what `torch.save` wrote to `file`: tensors and plain data, the rest as `Foreign` and `Unfit`.

    Raises:
        UserError: an archive that is damaged or can be read in two ways.
        Exception: whatever damaged bytes lead the reader to.
    """
    if is_zip(file):
        check_archive(file)
        return _read_archive(file)
    with open(file, "rb") as stream:
        return _read_old(stream)


def _read_archive(file: Path) -> Any:
    with open_archive(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        root = pickled.removesuffix("data.pkl")
        order = "little"
        if f"{root}byteorder" in archive.namelist():
            order = read_entry(archive, f"{root}byteorder").decode()
        storages: dict[str, bytearray] = {}

        def load_storage(dtype: torch.dtype, key: str, numel: int, _view: Any = None) -> _Storage:
            if key not in storages:
                data = storages[key] = read_entry(archive, f"{root}data/{key}")
                if order != sys.byteorder:
                    part = dtype.itemsize // (2 if dtype.is_complex else 1)
                    np.frombuffer(data, f"u{part}").byteswap(inplace=True)
            return _Storage(memoryview(storages[key])[: numel * dtype.itemsize], dtype)

        return _Reader(io.BytesIO(read_entry(archive, pickled)), load_storage).load()


def _read_old(stream: BinaryIO) -> Any:
    """Read the format from before torch 1.6: pickles one after another, then the storages' bytes."""
    size = os.fstat(stream.fileno()).st_size
    storages: dict[str, tuple[torch.dtype, bytearray]] = {}

    def load_storage(dtype: torch.dtype, key: str, numel: int, view: Any = None) -> _Storage:
        if key not in storages:
            taken = sum(len(data) for _, data in storages.values())
            if not 0 <= numel * dtype.itemsize <= size - taken:
                raise ValueError("a storage is larger than the file")
            storages[key] = dtype, bytearray(numel * dtype.itemsize)
        data = memoryview(storages[key][1])
        if view is not None:
            _, start, numel = view
            data = data[start * dtype.itemsize : (start + numel) * dtype.itemsize]
        return _Storage(data, dtype)

    def load() -> Any:
        return _Reader(stream, load_storage).load()

    if load() != _MAGIC:
        raise ValueError("it does not begin as a file of torch.save")
    load()  # the protocol's version
    little = load()["little_endian"]
    content = load()
    for key in load():
        dtype, data = storages[key]
        if int.from_bytes(stream.read(8), "little" if little else "big") * dtype.itemsize != len(data):
            raise ValueError("a storage has another size than its tensors say")
        if stream.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ValueError("it ends within a storage")
        if little != (sys.byteorder == "little"):
            np.frombuffer(data, f"u{dtype.itemsize // (2 if dtype.is_complex else 1)}").byteswap(inplace=True)
    return content


# in Python, not in C: no object is made but by the methods below, and damaged bytes take no memory
class _Reader(pickle._Unpickler):
    """An unpickler that calls functions of its table alone."""

    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]

    def __init__(self, stream: Any, load_storage: Callable[..., _Storage]) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what the table has of that name; nothing is imported."""
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        known = _TABLE.get(f"{module}.{name}")
        return Foreign(f"{module}.{name}") if known is None else _Known(known)

    def persistent_load(self, reference: Any) -> Any:
        """Return a storage of the file."""
        kind, storage_type, key, _, numel, *view = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            return storage_type if isinstance(storage_type, Foreign) else Foreign("another kind of storage")
        return self._load_storage(storage_type.dtype, key, numel, *view)

    def _made(self, maker: Any, arguments: Any) -> Any:
        if isinstance(maker, _Known):
            return maker.call(*arguments)
        return Foreign(maker.origin if isinstance(maker, Foreign) else type(maker).__name__)

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._made(klass, args))

    def load_reduce(self) -> None:
        """Replace a function and its arguments by what is made of them."""
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        """As `load_reduce`; arguments by name belong to classes that are not read."""
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        """Drop an object's state."""
        self.stack.pop()

    def load_bytearray8(self) -> None:
        """Take what there is of an array of bytes: its size may be said to be anything."""
        self.append(bytes(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a view of a storage, none of which lies outside."""
    if not isinstance(storage, _Storage):
        return Unfit(storage.origin if isinstance(storage, Foreign) else "no tensor")
    dtype = storage.dtype if dtype is None else dtype
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    numel = len(storage.data) // dtype.itemsize
    if min((offset, *size, *stride)) < 0 or len(size) != len(stride):
        raise ValueError("a tensor has negative sizes")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= numel:
        raise ValueError("a tensor lies outside of its storage")
    tensor = torch.frombuffer(storage.data, dtype=dtype, count=numel).as_strided(size, stride, offset)
    flags = rest[2] if len(rest) > 2 and isinstance(rest[2], dict) else {}
    tensor = tensor.conj() if flags.get("conj") else tensor
    return torch._neg_view(tensor) if flags.get("neg") else tensor


def _typed_tensor(storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _of_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    """Return a tensor that has attributes, without them."""
    made = function.call(*arguments) if isinstance(function, _Known) else None
    if isinstance(_type, Foreign):
        return Unfit(f"a {_type.origin}")
    return made if isinstance(made, Tensor) else Unfit("no tensor")


def _quantized(storage: Any, *_: Any) -> Unfit:
    """Return what is said of a quantized tensor: of `torch.QInt8Storage`, qint8."""
    return Unfit(getattr(storage, "origin", "quantized").removeprefix("torch.").removesuffix("Storage").lower())


def _mapping(*arguments: Any) -> dict[Any, Any]:
    return dict(*arguments[:1])


def _unfit(kind: str) -> Callable[..., Unfit]:
    return lambda *_: Unfit(kind)


_TABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "torch.Size": tuple,
    "torch.Tensor": _unfit("no tensor"),
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_meta_tensor_no_storage": _unfit("on meta, without values"),
    "torch._utils._rebuild_nested_tensor": _unfit("nested"),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": lambda layout, *_: Unfit(str(layout).removeprefix("torch.")),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch.nn.parameter.Parameter": _unfit("no tensor"),
    "torch.serialization._get_layout": str,
}
