# SPDX-License-Identifier: Apache-2.0
"""Files of PyTorch and of others that are no programs of `torch.export`: what they are, and what to do with them.

Nothing in them is read but the names in a zip file's table.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..errors import UserError

_EXPORT = "export the module: torch.export.save(torch.export.export(module, inputs), 'NAME.pt2')"
_WEIGHTS = "a file of weights, without the network; name the network and give the file as --checkpoint"
_PICKLE = (
    "a file of torch.save, which is no network: give weights as --checkpoint beside the network's name; of a pickled "
    f"module, which would run code and is not read, {_EXPORT}"
)
_KINDS = {
    ".onnx": f"an ONNX file, which is not read; {_EXPORT}",
    ".safetensors": _WEIGHTS,
    ".so": "compiled already; see it with `tvm-involution inspect`, run it with `tvm-involution run`",
    ".ts": f"a TorchScript file, which is not read; {_EXPORT}",
}
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")


def refuse_other_file(model: str) -> None:
    """Say what to do with a file that is given as MODEL and that MODEL cannot be.

    Raises:
        UserError: `model` is, or is called like, such a file.
    """
    path = Path(model)
    if (kind := _KINDS.get(path.suffix.lower())) is None and path.suffix.lower() in _PICKLES:
        kind = (what_else(path) if path.is_file() else None) or _PICKLE
    if kind is None and (path.is_file() or "/" in model):
        kind = "no MODEL; expected a zoo name, a .pt2 file of torch.export.save, or package.module:function"
    if kind is not None:
        raise UserError(f"{model} is {kind}")


def what_else(path: Path) -> str | None:
    """Return what `path`, called like an archive of PyTorch, is instead of a program of `torch.export`, if known."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        with open(path, "rb") as file:
            return _PICKLE if file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") else None
    except (ValueError, NotImplementedError):
        return None
    if any(name.startswith("code/") for name in names):
        return f"a TorchScript file, which is not read; {_EXPORT}"
    return _PICKLE if "data.pkl" in names else None
