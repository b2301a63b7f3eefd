# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: run a library on a data set and count."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import check_argument
from ..errors import UserError
from ..runtime import CompiledNetwork
from ..runtime.library_file import read_metadata
from ..runtime.predictor import Failure, Predictor
from ..runtime.results import Result
from ..zoo import list_models
from .cityscapes import Cityscapes
from .coco import Coco
from .data_set import DataSet
from .imagenet import ImageNet

if TYPE_CHECKING:
    import torch

    from .against_torch import TorchModule

DATA_SETS: dict[str, type[DataSet]] = {"imagenet": ImageNet, "coco": Coco, "cityscapes": Cityscapes}
# mmdet's and mmseg's own: what a detector returns is counted, however unlikely
_EVERYTHING = 0.0


@dataclass(frozen=True)
class Evaluation:
    """What a library reached."""

    library: str
    """its network's name"""
    data: str
    pictures: int
    figures: dict[str, float]
    """in percent: top1 and top5, box_ap and mask_ap, or miou"""
    published: dict[str, Any] = field(default_factory=dict)
    """the zoo's figures of the same names"""
    weights: str = ""
    compared: int | None = None
    disagreements: int | None = None
    """with torch: of as many answers (pictures, or pixels) as were compared, how many differ"""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def evaluate(
    library: str | os.PathLike[str] | CompiledNetwork,
    data: str,
    *,
    device: str | torch.device | None = None,
    limit: int | None = None,
    against: str | torch.nn.Module | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    remark: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Run a library on a data set and count how much is right.

    Args:
        library, device: see `Predictor`.
        data: `imagenet:DIR`, `coco:DIR` or `cityscapes:DIR`; see docs/evaluation.md for what lies there.
        limit: of how many pictures, the first; all by default.
        against: `torch` runs the module that the library was compiled from on the same pictures, too, and counts where
            the answers differ; or a module, where the library was compiled from one in memory.
        ray: address of a Ray cluster that runs the library, a file, on pictures that its machines see under the same
            names; see `tvm_involution.ray`.
        progress: told the number of pictures done, and of all.
        remark: told what happens to the cluster.

    Raises:
        UserError: a folder that is not laid out as expected, a library for something else, a picture that cannot be
            read, or weights that torch needs and that are not there; no cluster.
    """
    kind, _, folder = check_argument("evaluate: data", data, str).partition(":")
    if kind not in DATA_SETS or not folder:
        raise UserError(f"unknown data {data!r:.80}; expected {', '.join(f'{name}:DIR' for name in DATA_SETS)}")
    if limit is not None and check_argument("evaluate: limit", limit, int) < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    if isinstance(against, str) and against != "torch":
        raise UserError(f"unknown peer {against!r:.80}; expected torch")
    if ray is None:
        predictor = Predictor(library, device, score_threshold=_EVERYTHING)
        metadata = predictor.network.metadata
    else:
        if isinstance(library, CompiledNetwork) or device is not None:
            raise UserError("evaluate: machines of a cluster load the file of a library themselves; leave out device")
        file = library
        metadata = read_metadata(file)
    if metadata.task not in DATA_SETS[kind].tasks:
        raise UserError(
            f"{kind} is for {' or '.join(DATA_SETS[kind].tasks)}, and {metadata.name} is for {metadata.task}"
        )
    answers = DATA_SETS[kind](Path(folder), metadata, limit)
    peer = None
    if against is not None:
        from .against_torch import TorchModule

        peer = TorchModule(metadata, _EVERYTHING, None if isinstance(against, str) else against)
    start = time.monotonic()
    work = _Work(answers, peer)
    measured: Iterable[tuple[int, tuple[Any, tuple[int, int]]]]
    if ray is None:
        measured = ((number, work(number, answer)) for number, answer in enumerate(predictor.stream(answers.pictures)))
    else:
        from ..ray.spread import spread

        measured = spread(file, answers.pictures, work, address=ray, remark=remark, score_threshold=_EVERYTHING)
    disagreements = compared = 0
    for done, (number, (counts, (differ, of))) in enumerate(measured, 1):
        answers.count(number, counts)
        disagreements, compared = disagreements + differ, compared + of
        progress(done, len(answers.pictures))
    figures = answers.figures()
    # those of a network of other classes are of another task
    published = next(
        (s.published for s in list_models() if (s.name, s.classes) == (metadata.name, metadata.classes)), {}
    )
    return Evaluation(
        library=metadata.name,
        data=data,
        pictures=len(answers.pictures),
        figures=figures,
        published={name: published[name] for name in figures if name in published},
        weights=metadata.weights_origin,
        compared=compared if peer else None,
        disagreements=disagreements if peer else None,
        seconds=round(time.monotonic() - start, 3),
    )


@dataclass(frozen=True)
class _Work:
    """What is made of an answer where the library runs."""

    data: DataSet
    peer: TorchModule | None

    def __call__(self, number: int, answer: Result | Failure) -> tuple[Any, tuple[int, int]]:
        if isinstance(answer, Failure):
            raise answer.error  # a figure without it would be another
        return self.data.measure(number, answer), (0, 0) if self.peer is None else self.peer.compare(answer)
