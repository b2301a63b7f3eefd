# SPDX-License-Identifier: Apache-2.0
"""What the command line asks for."""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("float16", "bfloat16", "float32", "tf32")
"""tf32: float32 that is multiplied on tensor cores, by 10 bits of its mantissa"""
OURS, TUNED = "ours", "ours tuned"
"""contenders: with the rules' defaults, and with tuning records"""
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2, "tf32": 1e-2}
"""of the relative norm of one kernel's results, its inputs being right"""


@dataclass(frozen=True)
class Settings:
    """The words of the command line; every process of the benchmark has them."""

    out: Path
    target: str
    """`cuda`, or `llvm` to try the benchmark without a GPU"""
    models: tuple[str, ...]
    """the network of all steps, and what it is compared with"""
    more_models: tuple[str, ...]
    """compared after all others, in the first precision alone"""
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    image_size: int
    without: tuple[str, ...]
    """what the names of contenders begin with that are left out"""
    minutes: float
    """of the whole command"""
    deadline: float
    """seconds since the epoch at which a step starts nothing more"""
    in_process: bool = False
    """do without processes, to debug: an error that kills one ends the whole run, and no job has a time limit"""

    def wants(self, contender: str) -> bool:
        """Return whether a contender is not left out."""
        return not any(contender.startswith(word) for word in self.without)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.target == "cuda"

    @property
    def device(self) -> str:
        """Torch's name of the device."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def tuning_logs(self) -> Path:
        """The folder of the tuning records."""
        return self.out / "tuning_logs"

    @property
    def scratch(self) -> Path:
        """A folder for compiled code, which is not kept."""
        folder = Path(tempfile.gettempdir()) / f"tvm-involution-gpu-{zlib.crc32(bytes(self.out.resolve())):08x}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def seconds_left(self) -> float:
        """The seconds until the deadline."""
        return self.deadline - time.time()


def dtype_of(precision: str) -> str:
    """Return the dtype of the arrays."""
    return "float32" if precision == "tf32" else precision


def parser(description: str | None, steps: tuple[str, ...]) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = _list_of(str)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; made where missing")
    parser.add_argument("--minutes", type=float, default=25.0, help="of the whole command")
    parser.add_argument("--only", type=words, default=steps, metavar="STEP,...", help=f"some of {','.join(steps)}")
    parser.add_argument("--target", choices=["cuda", "llvm"], default="cuda")
    parser.add_argument("--models", type=words, default=("rednet50", "resnet50"))
    parser.add_argument("--more-models", type=words, default=("rednet26", "rednet101", "resnet101"))
    parser.add_argument("--batch", type=_list_of(int), default=(128, 1, 32))
    parser.add_argument("--dtypes", type=words, default=PRECISIONS, help=f"some of {','.join(PRECISIONS)}")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--without", type=words, default=(), metavar="CONTENDER,...", help="by how their names begin")
    parser.add_argument("--in-process", action="store_true", help="do everything in one process, to debug")
    parser.add_argument("--step", choices=steps, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser


def settings_of(words: argparse.Namespace) -> Settings:
    """Return the settings of parsed words."""
    return Settings(
        out=words.out,
        target=words.target,
        models=words.models,
        more_models=words.more_models,
        batches=words.batch,
        precisions=words.dtypes,
        image_size=words.image_size,
        without=words.without,
        minutes=words.minutes,
        deadline=words.deadline or time.time() + 60 * words.minutes,
        in_process=words.in_process,
    )


def _list_of(kind: type):
    return lambda text: tuple(kind(word) for word in text.split(",") if word)
