# SPDX-License-Identifier: Apache-2.0
"""From pictures to named answers, many at once: decoded in threads while the library runs."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..arguments import check_argument
from ..errors import UserError
from .find_pictures import find_pictures
from .metadata import LibraryMetadata
from .network import CompiledNetwork, load
from .placement import Placement
from .prepare import prepare_picture
from .preprocessing import decode_picture, read_picture
from .results import Result, make_result

if TYPE_CHECKING:
    import torch

_MOST_DECODERS = 16


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read."""

    source: str | None
    error: UserError


def batch_of(metadata: LibraryMetadata) -> int:
    """Return how many pictures a library is best given in a call.

    Raises:
        UserError: it takes no pictures, or mixes those of a batch.
    """
    if metadata.preprocessing is None:
        raise UserError(
            f"{metadata.name} does not say how to prepare a picture; compile it with --preprocessing, or give it "
            "arrays as `load` does"
        )
    if metadata.mixed_by and 1 not in metadata.batch_sizes:
        raise UserError(f"{metadata.name} mixes the pictures of a batch; compile it for batch 1")
    return 1 if metadata.mixed_by else metadata.batch_sizes[-1]


@dataclass(frozen=True)
class _Prepared:
    source: str | None
    picture: Image.Image
    array: np.ndarray
    placement: Placement | None


class Predictor:
    """Answers about pictures, by a library that says how they are prepared.

        predict = ti.Predictor("lib.so")
        predict("photo.jpg").classes[0].name
        for result in predict.stream(files): ...

    Args:
        library: its file, or what `load` returned.
        device: see `load`.
        batch: pictures a call; by default the largest batch size that the library was compiled for.
        top_k: classes that a classifier's answer names.
        score_threshold: objects below are left out.

    Raises:
        UserError: as `load`; or a library that takes no pictures, or mixes those of a batch.
    """

    def __init__(
        self,
        library: str | os.PathLike[str] | CompiledNetwork,
        device: str | torch.device | None = None,
        *,
        batch: int | None = None,
        top_k: int = 5,
        score_threshold: float = 0.3,
    ) -> None:
        library = check_argument("Predictor: library", library, str | os.PathLike | CompiledNetwork)
        self.network = library if isinstance(library, CompiledNetwork) else load(library, device)
        metadata = self.network.metadata
        default = batch_of(metadata)
        self.batch: int = default if batch is None else check_argument("Predictor: batch", batch, int)
        self.top_k: int = check_argument("Predictor: top_k", top_k, int)
        self.score_threshold: float = check_argument("Predictor: score_threshold", score_threshold, float)
        if self.batch < 1 or self.top_k < 1:
            raise UserError(f"batch and top_k must be at least 1, got {self.batch} and {self.top_k}")
        if metadata.mixed_by and self.batch != 1:
            raise UserError(f"{metadata.name} mixes the pictures of a batch; leave out batch")

    def __call__(self, pictures: Any) -> Any:
        """Answer about one picture, or about several.

        Args:
            pictures: a picture's file or its bytes, a PIL picture or an array (H, W, 3), (H, W, 4) or (H, W) uint8; or
                a folder or a pattern such as `photos/*.jpg`, or a list of any of these.

        Returns:
            A `Result` for one picture, a list of them, in order, for a folder, a pattern or a list.

        Raises:
            UserError: no such file, or what is no picture; it names the first.
        """
        if isinstance(pictures, (list, tuple)):
            return list(self._all(pictures))
        if isinstance(pictures, (str, os.PathLike)) and not os.path.isfile(pictures):
            return list(self._all(find_pictures([pictures])))
        return next(self._all([pictures]))

    def _all(self, pictures: Sequence[Any]) -> Iterator[Result]:
        flat: list[Any] = []
        for entry in pictures:
            flat += find_pictures([entry]) if isinstance(entry, (str, os.PathLike)) else [entry]
        for answer in self.stream(flat):
            if isinstance(answer, Failure):
                raise answer.error
            yield answer

    def stream(self, pictures: Iterable[Any]) -> Iterator[Result | Failure]:
        """Yield an answer for each picture, in order; a `Failure` where it cannot be read.

        Pictures are read a few batches ahead, in threads, while the library runs.

        Args:
            pictures: files, bytes, PIL pictures or arrays, as for a call.
        """
        decoders = min(_MOST_DECODERS, len(os.sched_getaffinity(0)))
        ahead = 2 * self.batch + decoders
        waiting: deque[Future[_Prepared | Failure]] = deque()
        source = iter(pictures)
        pool = ThreadPoolExecutor(decoders, thread_name_prefix="tvm-involution-decode")
        try:
            while True:
                while len(waiting) < ahead and (entry := next(source, pool)) is not pool:
                    waiting.append(pool.submit(self._prepare, entry))
                if not waiting:
                    return
                yield from self._answer([waiting.popleft().result() for _ in range(min(self.batch, len(waiting)))])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, entry: Any) -> _Prepared | Failure:
        name = os.fspath(entry) if isinstance(entry, (str, os.PathLike)) else None
        try:
            picture = _as_picture(entry) if name is None else read_picture(name)
            array, placement = prepare_picture(self.network.metadata, picture)
        except UserError as error:
            return Failure(name, error)
        except MemoryError:
            return Failure(name, UserError(f"{name or 'a picture'} is too large for this machine's memory"))
        return _Prepared(name, picture, array, placement)

    def _answer(self, batch: Sequence[_Prepared | Failure]) -> Iterator[Result | Failure]:
        # a library for several image sizes takes those of one size together
        of_size: dict[tuple[int, ...], list[np.ndarray]] = {}
        for entry in batch:
            if isinstance(entry, _Prepared):
                of_size.setdefault(entry.array.shape, []).append(entry.array)
        outputs = {
            shape: self.network.run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
            for shape, arrays in of_size.items()
        }
        numbers = dict.fromkeys(of_size, 0)
        for entry in batch:
            if isinstance(entry, Failure):
                yield entry
                continue
            own, number = outputs[entry.array.shape], numbers[entry.array.shape]
            yield make_result(
                self.network.metadata,
                {spec.name: _of_picture(spec, own[spec.name], number) for spec in self.network.metadata.outputs},
                entry.picture,
                entry.placement,
                source=entry.source,
                top_k=self.top_k,
                score_threshold=self.score_threshold,
            )
            numbers[entry.array.shape] += 1


def _of_picture(spec: Any, output: np.ndarray, number: int) -> np.ndarray:
    if spec.batch_axis is None:
        return output
    index = slice(number * spec.per_picture, (number + 1) * spec.per_picture)
    return output[(slice(None),) * spec.batch_axis + (index,)]


def _as_picture(entry: Any) -> Image.Image:
    """Return a picture in memory in RGB."""
    if isinstance(entry, (bytes, bytearray, memoryview)):
        return decode_picture(io.BytesIO(entry), "a picture in memory")
    if isinstance(entry, Image.Image):
        if 0 in entry.size:
            raise UserError("a picture has no pixels")
        return entry if entry.mode == "RGB" else entry.convert("RGB")
    if isinstance(entry, np.ndarray):
        fits = entry.ndim == 2 or (entry.ndim == 3 and entry.shape[2] in (3, 4))
        if entry.dtype != np.uint8 or not fits or 0 in entry.shape:
            raise UserError(
                f"an array of a picture must be uint8 (H, W, 3), (H, W, 4) or (H, W), got {entry.dtype} "
                f"{list(entry.shape)}; what is prepared already goes to what `load` returns"
            )
        return Image.fromarray(entry).convert("RGB")
    raise UserError(f"a picture must be a file or its bytes, a PIL picture or an array, got {type(entry).__name__}")
