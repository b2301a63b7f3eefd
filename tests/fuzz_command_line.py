# SPDX-License-Identifier: Apache-2.0
"""Try bad arguments, files and arrays on every command: `python tests/fuzz_command_line.py --count 1000 --seed 0`.

A command must end within its time with status 0, or with status 2 and one line on standard error; no traceback, no
crash, no file that is left over, and no success with what is wrong for certain. Prints how many were tried, how many
were clean, and each that was not. Commands run in a process that has imported everything already (`--worker`), which is
replaced when it hangs or crashes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parent
_MEMORY = 16 << 30

NETWORK = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 4, 1)
def with_argument(x):
    return x
def fails():
    raise KeyError("no such thing")
def number():
    return 7
text = "build"
"""


@dataclasses.dataclass
class Case:
    """A command line."""

    words: list[str]
    wrong: bool
    """whether it is wrong for certain, so that status 0 is a finding"""


@dataclasses.dataclass
class Finding:
    """A case that did not end as it should."""

    number: int
    what: str
    case: Case
    err: str

    def __str__(self) -> str:
        shown = " ".join(repr(word)[:120] for word in self.case.words)
        return f"{self.number}: {self.what}: {shown}\n    " + "\n    ".join(self.err.splitlines()[-6:])


# ---------------------------------------------------------------- what is wrong

_LONG = "9" * 5000
_ODD_WORDS = (
    *("", " ", "-", "-1", "0", "²", "٣", "nan", "inf", "-inf", "1e400", "0x10", "1.5", "99999999999999999999"),
    *(_LONG, "a" * 5000, "ünï", "\udcff\udcfe", "a\nb", "\x1b[31m", "%s%n", "{}", "[]", "{", "None", "true"),
    *("$(touch x)", "`x`", "*", "~", "/", ".", "..", "a/b", "/nonexistent/x", "/dev/null", "/proc/self/mem"),
)
_SIZES = ("²", "0", "-1", "nan", "1e3", "", "1,,2", "1,", ",", "1;2", "9" * 30, _LONG, "0x8", "1.0", "one", "1 2", "\n")
_IMAGES = ("²x1", "1", "1x", "x", "0x0", "-1x5", "1x1x1", "axb", "99999999999999999999x1", "", f"1x{_LONG}", "5*5")
_NUMBERS = ("nan", "inf", "-inf", "-1", "", "x", "1e999", "²", "0b1")
_DTYPES = ("int8", "float64", "bogus", "", "Float32", "torch.float32", "\udcff", "float32,float16")
_TRIPLES = (
    *("garbage", "-", "x86_64", "armv7l-linux-gnueabihf", "i686-linux-gnu", "arm64-apple-macos", "wasm32"),
    *("x86_64-pc-windows-msvc", "aarch64-linux-android", "x86_64-linux-gnux32", "riscv32-linux-gnu"),
)
_CPU_FIELDS = (
    *('"mtriple": 7', '"bogus": 1', '"mcpu": "nope"', '"mcpu": "i386"', '"mcpu": "cortex-a72"', '"mcpu": []'),
    *('"num-cores": -1', '"num-cores": 0', '"num-cores": 99999999999999999999', '"num-cores": "two"'),
    *('"mattr": ["+bogus"]', '"mattr": "avx2"', '"mattr": ["avx2"]', '"opt-level": 9', '"mfloat-abi": "x"', '"jit": 5'),
)
_TARGETS = (
    *("garbage", "", "llvm -mcpu=x", "{", "{}", "[]", "{" * 3000, "nvidia/nvidia-h1000", "c", "hexagon", "\udcff"),
    *(f'{{"kind": "llvm", "mtriple": "{triple}"}}' for triple in _TRIPLES),
    *(f'{{"kind": "llvm", {field}}}' for field in _CPU_FIELDS),
    *(f'{{"kind": "cuda", "arch": "sm_90", "host": {{"kind": "llvm", {field}}}}}' for field in _CPU_FIELDS),
    *('{"kind": 5}', '{"kind": "cuda"}', '{"kind": "cuda", "arch": "sm_1"}', '{"kind": "cuda", "arch": 7}'),
    *('{"kind": "cuda", "arch": "x"}', '{"kind": "llvm", "host": {"kind": "cuda"}}'),
    '{"kind": "cuda", "arch": "sm_90", "host": {"kind": "cuda", "arch": "sm_90"}}',
)
_MODELS = (
    *("rednet5O", "", "\udcff", "x.onnx", "x.pt", "x.pth", "x.safetensors", "none.pt2", "a/b", ".", "folder"),
    *(":", ":build", "net:", "net:none", "net:text", "net:with_argument", "net:fails", "net:number", "os:system"),
    *("no.such:thing", "broken:build", "sys:exit", "..net:build", "net:build:x", "a b:c", "builtins:dict", "/x:y"),
    *("folder.pt2", "os:abort()", "file", "x.so"),
)
_TABLES = (
    *(
        b"",
        b"[",
        b"\xff",
        b"names = []",
        b"names = [1]",
        b'names = ["a"]',
        b"mean = [1, 2]",
        b'task = "classification"',
    ),
    b"mean = [1, 2, 3]\nstd = [0, 1, 1]\n",
    b"mean = [1, 2, nan]\nstd = [1, 1, 1]\n",
    b"mean = [1, 2, 3]\nstd = [1, 1, 1]\nresize = 4\n",
    b'task = "classification"\n[network]\nbuilder = "rednet"\ndepth = 51\n[input]\nimage_size = [4, 4]\n',
    b'task = "x"\n[network]\nbuilder = "rednet"\n[input]\nimage_size = [4, 4]\n',
    b'task = "detection"\n[network]\nbuilder = 7\n[input]\nimage_size = [-1, 4]\n',
)
_OUTPUTS = ("folder", "missing/x", "file/x", "", "/proc/none", "round", "n" * 300, "/dev/full")


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes than `data`."""
    while True:
        at = rng.randrange(len(data))
        size = 1 << rng.randrange(10)
        flipped = bytearray(data)
        for _ in range(1 << rng.randrange(6)):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        other = rng.choice(
            [
                data[:at],
                bytes(flipped),
                data[:at] + rng.randbytes(size) + data[at + size :],
                data[:at] + bytes([rng.choice((0, 255))]) * size + data[at + size :],
                data[:at] + data[at + size :],
                data[:at] + data[at : at + size] * 2 + data[at + size :],
                rng.randbytes(size),
            ]
        )
        if other != data:
            return other


class Workshop:
    """Makes the good files once, and bad ones of them for each case."""

    def __init__(self, folder: Path) -> None:
        self.good = folder / "good"
        self.good.mkdir()
        self._libraries()
        self._pictures()
        self._arrays()
        self._torch_files()

    def _libraries(self) -> None:
        from library_fixture import affine_library, colour_library, pair_library, whole_library

        affine_library(self.good / "affine.so")
        colour_library(self.good / "colour.so")
        pair_library(self.good / "pair.so")
        logits = np.zeros((1, 3, 8, 12), np.float32)
        whole_library(self.good / "segments.so", "semantic_segmentation", {"logits": logits})

    def _pictures(self) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        colour = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        for name in ("c.png", "c.jpg", "c.gif", "c.bmp", "c.tif", "c.webp", "c.ppm", "c.ico", "c.tga"):
            colour.save(self.good / name)
        colour.save(self.good / "lzw.tif", compression="tiff_lzw")
        colour.convert("P").save(self.good / "p.png")
        Image.fromarray(rng.integers(0, 2**16, (20, 30), dtype=np.uint16)).save(self.good / "deep.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        colour.save(self.good / "exif.jpg", exif=exif)

    def _arrays(self) -> None:
        array = np.arange(8, dtype=np.float32).reshape(2, 4)
        np.save(self.good / "x.npy", array)
        np.savez(self.good / "pair.npz", a=array, b=array)
        np.savez_compressed(self.good / "packed.npz", a=array, b=array)

    def _torch_files(self) -> None:
        import torch
        from safetensors.torch import save_file

        (self.good / "net.py").write_text(NETWORK)
        module = torch.nn.Conv2d(3, 4, 1).eval()
        torch.save({"state_dict": module.state_dict()}, self.good / "w.pth")
        torch.save(module.state_dict(), self.good / "old.pth", _use_new_zipfile_serialization=False)
        save_file(dict(module.state_dict()), self.good / "w.safetensors")
        torch.save(module, self.good / "pickled.pth")
        torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 4, 4),)), self.good / "net.pt2")

    def prepare(self, folder: Path) -> None:
        """Put what every case may name into its folder, which becomes the current one."""
        folder.mkdir()
        (folder / "folder").mkdir()
        (folder / "folder.pt2").mkdir()
        (folder / "file").write_text("a file")
        (folder / "round").symlink_to("round")
        (folder / "broken.py").write_text("def build(:\n")
        shutil.copy(self.good / "net.py", folder)

    def library(self, folder: Path, rng: random.Random, name: str) -> str:
        """Return the path of a good library."""
        return str(self.good / name)

    def damaged(self, folder: Path, rng: random.Random, name: str) -> str:
        """Return the path of a damaged copy."""
        path = folder / name
        path.write_bytes(damage((self.good / name).read_bytes(), rng))
        return str(path)


# ---------------------------------------------------------------- cases


def resealed(shop: Workshop, folder: Path, rng: random.Random) -> str:
    """Return a library whose metadata says something else, under a sum that is right."""
    data = (shop.good / rng.choice(["affine.so", "colour.so", "segments.so"])).read_bytes()
    length = int.from_bytes(data[-24:-16], "little")
    start = len(data) - 56 - length
    metadata = json.loads(data[start : start + length])
    place: Any = metadata
    while True:
        key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.4:
            break
        place = place[key]
    place[key] = rng.choice([None, -1, 0, 1.5, 10**30, "", "x", [], {}, [None], {"x": 1}, True, "\ud800", [[0]] * 3])
    text = json.dumps(metadata).encode()
    sealed = data[:start] + text
    footer = hashlib.sha256(sealed).digest() + len(text).to_bytes(8, "little") + data[-16:]
    (folder / "resealed.so").write_bytes(sealed + footer)
    return str(folder / "resealed.so")


def bad_array(folder: Path, rng: random.Random) -> str:
    """Return a .npy or .npz that fits no library here."""
    path = folder / "bad.npy"
    shapes = [(), (0,), (4,), (0, 4), (1, 5), (2, 2, 2), (1, 3, 8, 13)]
    array: Any = np.zeros(
        rng.choice(shapes), rng.choice(["f4", "f8", "f2", "i8", "u1", "c8", "?", "S3", "U2", "M8[s]"])
    )
    kind = rng.randrange(5)
    if kind == 0:
        array = np.array([{"a": 1}, os.getcwd], dtype=object)
    elif kind == 1:
        array = np.zeros(3, [("x", "f4"), ("y", "i2")])
    if kind == 2:
        header = io.BytesIO()
        shape = rng.choice([(10**9, 4), (2**40, 2**40), (-1, 4), (10**30,), (2**63, 0)])
        descr = rng.choice(["<f4", ">f4", "|O", "<f8", "|S99999999"])
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        path.write_bytes(header.getvalue() + bytes(64))
    elif kind == 3:
        header = rng.choice(
            ["{", "[" * 2000, "{'descr': '<f4'}", "__import__('os').getcwd()", "{'descr': 5, 'shape': 1}"]
        )
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(32))
    else:
        np.save(path, array, allow_pickle=True)
    if rng.random() < 0.3:
        with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
            for name in rng.choice([("a", "b"), ("x",), ("a",), ("../x", "a", "b"), ()]):
                archive.write(path, f"{name}.npy")
        path.unlink()
        return str(folder / "bad.npz")
    return str(path)


def bad_picture(folder: Path, rng: random.Random) -> str:
    """Return a picture that cannot be used."""
    from PIL import Image

    kind = rng.randrange(5)
    path = folder / "bad.png"
    if kind == 0:
        path = folder / "bad.tif"
        Image.fromarray(np.full((4, 4), rng.choice([-1.0, 300.0, np.nan, np.inf]), np.float32)).save(path)
    elif kind == 1:
        path = folder / "bad.tif"
        Image.fromarray(np.full((4, 4), rng.choice([-1, 10**6]), np.int32)).save(path)
    elif kind == 2:
        size = rng.choice([(2**31 - 1, 1), (1 << 20, 1 << 20), (0, 5), (5, 0)])
        chunk = b"IHDR" + size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
        crc = zipfile.crc32(chunk).to_bytes(4, "big")  # type: ignore[attr-defined]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + crc + bytes(20))
    elif kind == 3:
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    else:
        path.write_bytes(rng.randbytes(rng.randrange(200)))
    return str(path)


_PICTURES = (
    *("c.png", "c.jpg", "c.gif", "c.bmp", "c.tif", "lzw.tif", "c.webp", "c.ppm", "c.ico", "c.tga", "p.png", "deep.png"),
    "exif.jpg",
)


def run_case(shop: Workshop, folder: Path, rng: random.Random) -> Case:
    """`run` with one thing wrong."""
    library = str(shop.good / rng.choice(["affine.so", "pair.so", "colour.so", "segments.so"]))
    fitting = {"affine.so": "x.npy", "pair.so": "pair.npz", "colour.so": "c.png", "segments.so": "exif.jpg"}
    good = str(shop.good / fitting[Path(library).name])
    words, wrong = ["run", library, "--input", good], True
    kind = rng.randrange(9)
    if kind == 0:
        words[1] = shop.damaged(folder, rng, rng.choice([*fitting]))
        words[3] = str(shop.good / fitting[Path(words[1]).name])
    elif kind == 1:
        words[3] = bad_array(folder, rng)
    elif kind == 2:
        words[1], words[3] = str(shop.good / rng.choice(["colour.so", "segments.so"])), bad_picture(folder, rng)
    elif kind == 3:
        words[1] = str(shop.good / rng.choice(["colour.so", "segments.so"]))
        words[3], wrong = shop.damaged(folder, rng, rng.choice(_PICTURES)), False
    elif kind == 4:
        name = rng.choice(["x.npy", "pair.npz", "packed.npz"])
        words[1] = str(shop.good / ("affine.so" if name == "x.npy" else "pair.so"))
        words[3], wrong = shop.damaged(folder, rng, name), False
    elif kind == 5:
        words += ["--output", rng.choice(_OUTPUTS)]
    elif kind == 6:
        option, values = rng.choice(
            [
                ("--top-k", ("0", "-1", "x", "", "1.5", "nan")),
                ("--score-threshold", (*_NUMBERS, "1.1", "-0.1")),
                ("--device", ("gpu", "", "cuda", "cuda:x", "cpu:1", "cuda:-1", "cuda:²", "\udcff", "metal")),
                ("--draw", _OUTPUTS if "segments" in library else ("x.png",)),
                ("--ray", ("", "x", "x:", ":1", "a..b:1", "127.0.0.1:²", "127.0.0.1:99999", "127.0.0.1:1", "ray://")),
            ]
        )
        words += [option, rng.choice(values)]
    elif kind == 7:
        place = rng.choice([1, 3])
        # folders with pictures, and patterns that fit, are fine
        odd = [word for word in _ODD_WORDS if place == 1 or word not in ("/", "..", "*")]
        words[place] = rng.choice([*odd, "folder", "file", "round", str(shop.good / "net.pt2")])
    else:
        words += rng.choice(
            [["--input", "missing.png"], ["--output", "a.npz", "--output", "b.npz"], ["surplus"], ["--bogus"]]
        )
    return Case(words, wrong)


def inspect_case(shop: Workshop, folder: Path, rng: random.Random) -> Case:
    """`inspect` of what is no library, and `config` of what are no wheels."""
    kind = rng.randrange(3)
    if kind == 0:
        return Case([*rng.choice([["inspect"], ["config", "--ldflags", "--wheels"]]), rng.choice(_ODD_WORDS)], True)
    if kind == 1:
        return Case(["inspect", str(shop.good / rng.choice(["c.png", "x.npy", "net.pt2", "net.py"])), "--json"], True)
    return Case(["inspect", shop.damaged(folder, rng, rng.choice(["affine.so", "colour.so"]))], True)


def model_case(shop: Workshop, folder: Path, rng: random.Random) -> Case:
    """`compile`, `tune`, `bench` or `logs coverage` with one thing wrong."""
    command = rng.choice(["compile"] * 4 + ["tune", "tune", "bench", "coverage"])
    start = {"compile": ["compile"], "tune": ["tune"], "bench": ["bench"], "coverage": ["logs", "coverage"]}[command]
    model, options, wrong = "net:build", {"--image-size": "4x4"}, True
    if command == "compile":
        options["-o"] = "out.so"
    if command == "tune":
        options |= {"--log-dir": "logs", "--trials": "1"}
    if command == "bench":
        options["--against"] = "none"
        model = "rednet26"
        kinds = ["model", "image", "size", "twice", "number", "output", "odd option"]  # told before a process starts
    else:
        kinds = ["model", "target", "target", "image", "size", "dtype", "twice", "number", "folder", "odd option"]
    if command == "compile":
        kinds += ["output", "checkpoint", "checkpoint", "archive", "archive", "own data", "own data", "zoo file"]
    kind = rng.choice(kinds)
    if kind == "model":
        known_at_once = [name for name in _MODELS if ":" not in name and not name.endswith((".pt2", ".so"))]
        model = rng.choice(known_at_once if command == "bench" else _MODELS)
    elif kind == "archive":
        model, wrong = shop.damaged(folder, rng, "net.pt2"), False
        options.pop("--image-size")
    elif kind == "own data":
        name = rng.choice(["--classes", "--preprocessing", "--num-classes", "--checkpoint-key"])
        (folder / "odd.toml").write_bytes(rng.choice(_TABLES))
        values = ("missing", "folder", "round", "odd.toml", "/proc/self/mem", "")
        options[name] = rng.choice(values if name in ("--classes", "--preprocessing") else _SIZES)
    elif kind == "zoo file":
        (folder / "odd.toml").write_bytes(rng.choice(_TABLES))
        model = rng.choice(["odd.toml", "missing.toml", "folder.toml", "./odd.toml"])
    elif kind == "target":
        options["--target"] = rng.choice(_TARGETS)
    elif kind == "image":
        options["--image-size"] = rng.choice([*_IMAGES, "40000x40000"] if command != "bench" else _IMAGES)
    elif kind == "size":
        options["--batch"] = rng.choice([size for size in _SIZES if command != "bench" or size != "9" * 30])
    elif kind == "dtype":
        options["--dtype"] = rng.choice(_DTYPES)
    elif kind == "twice":
        return Case([*start, model, "--batch", "1", "--batch", "2", *_flat(options)], True)
    elif kind == "number":
        name = {"tune": rng.choice(["--minutes", "--trials"]), "bench": "--timeout"}.get(command, "--batch")
        options[name] = rng.choice(_NUMBERS)
    elif kind == "folder":
        name, values = "--tuning-logs", ("missing", "file", "round", "/proc/none")
        if command == "tune":
            name, values = "--log-dir", ("file", "file/x")
        options[name] = rng.choice(values)
    elif kind == "output":
        options["-o"] = rng.choice([output for output in _OUTPUTS if output != "/dev/full"])
    elif kind == "checkpoint":
        wrong = rng.random() < 0.3
        options["--checkpoint"] = rng.choice(["missing.pth", "folder", "", "round", "\udcff", "net.py", "x.onnx"])
        if not wrong:
            options["--checkpoint"] = shop.damaged(folder, rng, rng.choice(["w.pth", "old.pth", "w.safetensors"]))
    else:
        options[f"--{rng.choice(['bogus', 'targets', 'x' * 3000, 'ünï'])}"] = "1"
    return Case([*start, model, *_flat(options)], wrong)


def other_case(shop: Workshop, folder: Path, rng: random.Random) -> Case:
    """The other commands, and words that are no command."""
    if rng.random() < 0.4:
        return log_case(shop, folder, rng)
    odd = rng.choice(_ODD_WORDS)
    return rng.choice(
        [
            Case([odd], True),
            Case(["models", odd], True),
            Case(["targets", "--json", odd], True),
            Case(["logs", odd], True),
            Case(["logs", "prune", odd if odd not in (".", "..", "/", "~") else "file"], True),
            Case(["logs", "prune", "folder", "--keep", rng.choice(_SIZES)], True),
            Case(["logs", "merge", "folder", "--into", rng.choice(["file", "round", "file/x", "/proc/none"])], True),
            Case(["logs", "merge", rng.choice(["missing", "file", "round", ""]), "--into", "new"], True),
            Case(
                ["tune", "net:build", "--rpc", rng.choice(["x", "x:", ":1", "x:²", "x:99999", ""]), "--rpc-key", "k"],
                True,
            ),
            Case(["bench", rng.choice(["none.so", "file", "folder"]), *rng.choice([[], ["--per-layer"]])], True),
            Case(["bench", shop.damaged(folder, rng, "affine.so"), "--against", "none"], True),
            Case(["bench", "rednet26", "--against", rng.choice(["tensorrt", "torch,x", "ünï"])], True),
            Case(["bench", "rednet26", "--chart", rng.choice(["x.txt", "x", "folder", "missing/x.png"])], True),
        ]
    )


def log_case(shop: Workshop, folder: Path, rng: random.Random) -> Case:
    """Tuning logs with one file damaged."""
    logs = folder / "logs"
    shutil.copytree(TESTS.parent / "tuning_logs" / "haswell", logs / "haswell")
    path = rng.choice(sorted((logs / "haswell").iterdir()))
    path.write_bytes(damage(path.read_bytes(), rng))
    haswell = ["--target", '{"kind": "llvm", "mcpu": "haswell"}', "--image-size", "4x4"]
    return rng.choice(
        [
            Case(["logs", "prune", "logs"], False),
            Case(["logs", "merge", "logs", "--into", "folder"], False),
            Case(["logs", "coverage", "net:build", "--tuning-logs", "logs", *haswell], False),
            Case(["compile", "net:build", "--tuning-logs", "logs", *haswell, "-o", "out.so"], False),
        ]
    )


def _flat(options: dict[str, str]) -> Iterator[str]:
    for name, value in options.items():
        yield name
        yield value


def resealed_case(shop: Workshop, folder: Path, rng: random.Random) -> Case:
    """A library with odd metadata."""
    library = resealed(shop, folder, rng)
    inputs = [["--input", str(shop.good / name)] for name in ("c.png", "x.npy")]
    return Case(rng.choice([["inspect", library], *(["run", library, *words] for words in inputs)]), False)


_KINDS: tuple[tuple[float, Callable[[Workshop, Path, random.Random], Case]], ...] = (
    (0.4, run_case),
    (0.1, inspect_case),
    (0.4, model_case),
    (0.1, other_case),
    (0.05, resealed_case),
)


# ---------------------------------------------------------------- running them


class Worker:
    """A process that runs one command line after the other."""

    def __init__(self, temporary: Path) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        environment = {"PYTHONPATH": path, "TMPDIR": str(temporary), "XDG_DATA_HOME": str(temporary / "data")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        self.ask({"words": ["--version"], "folder": str(temporary)}, 120.0)

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Return what became of a command line; None where the time is over or the process died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> int | None:
        """End the process; return the status with which it had died by itself."""
        died = self.process.poll()
        self.process.kill()
        self.process.communicate()
        return died


def work() -> None:
    """Run the command lines that come in, and tell how each ended; what C++ writes is caught too."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    import torch  # noqa: F401

    from tvm_involution.cli import main

    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["folder"])
        before = [*sys.path], {*sys.modules}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            try:
                main(request["words"])
                status: Any = None
            except SystemExit as end:
                status = end.code
            except BaseException as error:
                status = repr(error)
            sys.stdout.flush()
            sys.stderr.flush()
            err.seek(0)
            text = err.read().decode(errors="replace")
        # the next case's `net` is another one
        sys.path[:] = before[0]
        for name in {"net", "broken"} & sys.modules.keys() - before[1]:
            del sys.modules[name]
        replies.write(json.dumps({"status": status, "err": text}) + "\n")


def judge(case: Case, answer: dict[str, Any]) -> str | None:
    """Return what is wrong with how `case` ended, if anything."""
    status, err = answer["status"], answer["err"]
    if "Traceback" in err:
        return "traceback"
    if status not in (0, 2):
        return f"status {status}"
    if status == 2 and not (err.startswith("tvm-involution: ") and err.count("\n") == 1):
        return f"{err.count(chr(10))} lines on standard error"
    if status == 0 and err:
        return "words on standard error"
    if status == 0 and case.wrong:
        return "no error"
    return None


def files_of(folder: Path) -> dict[str, int]:
    """Return the files under `folder` with their sizes."""
    return {
        str(path.relative_to(folder)): path.lstat().st_size
        for path in folder.rglob("*")
        if "__pycache__" not in str(path)
    }


def left_over(folder: Path, before: dict[str, int], temporary: Path, status: object) -> set[str]:
    """Return the files that a command left, or changed, and should not have; those that it may is what it wrote."""
    left = {name for name, _ in files_of(folder).items() ^ before.items()} if status != 0 else set()
    hidden = {path.name for path in folder.iterdir() if path.name.startswith(".")}
    # torch makes an empty folder
    return left | hidden | {f"TMPDIR/{name}" for name in files_of(temporary) if not name.startswith("torchinductor")}


def fuzz(count: int, seed: int, timeout: float = 60.0, first: int = 0) -> tuple[list[Finding], int]:
    """Try `count` cases; return those that did not end as they should, and how many ended with status 0."""
    findings, successes = [], 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        shop, temporary = Workshop(Path(name)), Path(name, "tmp")
        temporary.mkdir()
        worker = Worker(temporary)
        for number in range(first, first + count):
            rng = random.Random(f"{seed} {number}")
            folder = Path(name, f"case{number}")
            shop.prepare(folder)
            (make,) = rng.choices([kind for _, kind in _KINDS], [weight for weight, _ in _KINDS])
            case = make(shop, folder, rng)
            before = files_of(folder)
            answer = worker.ask({"words": case.words, "folder": str(folder)}, timeout)
            if answer is None:
                died = worker.end()
                what = f"the process died ({died})" if died is not None else f"no answer in {timeout:.0f} s"
                findings.append(Finding(number, what, case, ""))
                worker = Worker(temporary)
            else:
                successes += answer["status"] == 0
                left = left_over(folder, before, temporary, answer["status"])
                if what := judge(case, answer) or (f"left {', '.join(sorted(left))}" if left else None):
                    findings.append(Finding(number, what, case, answer["err"]))
            shutil.rmtree(folder)
            for path in temporary.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        worker.end()
    return findings, successes


def main() -> None:
    """Try and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to try one again")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a case may take")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker:
        work()
        return
    sys.path.insert(0, str(TESTS))
    findings, successes = fuzz(words.count, words.seed, words.timeout, words.first)
    for finding in findings:
        print(finding)
    clean = words.count - len(findings)
    print(f"tried {words.count}, clean {clean}: {successes} with status 0, the others refused in one line")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
