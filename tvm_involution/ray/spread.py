# SPDX-License-Identifier: Apache-2.0
"""Pictures spread over the machines of a Ray cluster, which may come and go: each is answered once, none is lost.

Ray's own retries are not used. Pieces of the list go to workers, and what a worker has not sent back when it ends goes
to others; so an answer is yielded when its whole piece is here, or not at all.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import __version__
from ..errors import UserError
from ..runtime.library_file import read_metadata
from ..runtime.predictor import batch_of
from .cluster import connected
from .worker import Work, Worker

# a network's rows of pixels are shared by few cores without loss, and a worker has weights of its own
_CORES = 4
# of a piece: what a lost worker had is read again, and one process hands out all pieces
_PICTURES = 16
_MOST_PICTURES = 256
_PIECES = 20_000
# while the library runs on one piece the next is read
_PIECES_EACH = 2
_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 30.0
_TRIES = 5


def spread(
    library: str | os.PathLike[str],
    pictures: Sequence[str],
    work: Work,
    *,
    address: str,
    remark: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Iterator[tuple[int, Any]]:
    """Yield what `work` makes of the answer about each picture, with its number, as they come.

    A machine with GPUs has a worker for each if the library is for GPUs; else it has one for every four cores. Machines
    that join later are used; on those that cannot run the library there is a remark.

    Args:
        library: a file here.
        pictures: files, under the same names on all machines.
        work: called with a number and a `Result` or `Failure` on the machine that answered; it is pickled.
        address: see `connected`.
        settings: of `Predictor`.

    Raises:
        UserError: no cluster answers, none of its machines can run the library, all are gone, or pictures at which
            workers end again and again.
    """
    metadata = read_metadata(library)
    size = batch_of(metadata)
    size *= -(-max(_PICTURES, min(_MOST_PICTURES, len(pictures) // _PIECES)) // size)
    with connected(address) as ray:
        with open(library, "rb") as file:
            content = ray.put(np.frombuffer(file.read(), np.uint8))
        built_with = (__version__, content, ray.put(work))
        pieces = deque((first, pictures[first : first + size]) for first in range(0, len(pictures), size))
        fleet = _Fleet(ray, metadata.device_type == "cuda", built_with, settings, remark)
        try:
            yield from fleet.answers(pieces)
        finally:
            fleet.stop()


_Piece = tuple[int, Sequence[str]]


@dataclass(eq=False)
class _Member:
    """A worker and what it is at work on."""

    node: str
    number: int
    """among those of the node"""
    place: str
    """the node's address, for people"""
    actor: Any
    pieces: dict[Any, _Piece] = field(default_factory=dict)
    """by Ray's reference to the answer"""


class _Fleet:
    """The workers of a cluster."""

    def __init__(
        self,
        ray: Any,
        on_gpus: bool,
        built_with: tuple[Any, ...],
        settings: dict[str, Any],
        remark: Callable[[str], None],
    ) -> None:
        self._ray, self._on_gpus, self._built_with, self._settings = ray, on_gpus, built_with, settings
        self._remark = remark
        self._starting: dict[Any, _Member] = {}
        self._ready: list[_Member] = []
        self._left_out: dict[str, str] = {}
        self._ends: Counter[str] = Counter()
        self._tries: Counter[int] = Counter()
        self._looked = -_LOOK_SECONDS
        self._patience = time.monotonic() + _WAIT_SECONDS

    def answers(self, left: deque[_Piece]) -> Iterator[tuple[int, Any]]:
        """Yield the answers about all pieces."""
        while left or any(member.pieces for member in self._ready):
            if left:
                self._look()
            for member in self._ready:
                while left and len(member.pieces) < _PIECES_EACH:
                    first, names = left.popleft()
                    member.pieces[member.actor.answer.remote(first, names)] = first, names
            for reference in self._wait():
                if reference in self._starting:
                    self._take(self._starting.pop(reference), reference)
                    continue
                owner = next((member for member in self._ready if reference in member.pieces), None)
                if owner is None:  # of a worker that has just been given up
                    continue
                try:
                    answers = self._get(reference)
                except _Lost:
                    self._give_up(owner, left)
                    continue
                if isinstance(answers, UserError):
                    raise answers
                first, _ = owner.pieces.pop(reference)
                yield from enumerate(answers, first)

    def stop(self) -> None:
        """End all workers."""
        for member in [*self._starting.values(), *self._ready]:
            with contextlib.suppress(Exception):
                self._ray.kill(member.actor)

    def _look(self) -> None:
        """Start workers on machines that have none."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for name in alive.keys() - self._left_out.keys():
            self._start(name, alive[name]["NodeManagerAddress"], alive[name]["Resources"])
        if not self._starting and not self._ready:
            reasons = set(self._left_out.values())
            if not reasons:
                kind = "GPU" if self._on_gpus else "processor"
                raise UserError(f"the cluster has no machine with a {kind} left; start some, and this command again")
            raise UserError(f"no machine of the cluster can run it: {sorted(reasons)[0]}")

    def _start(self, node: str, place: str, resources: dict[str, float]) -> None:
        """Start the workers that a machine should have and has not."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        count = gpus if self._on_gpus else -(-cores // _CORES)
        there = {member.number for member in [*self._starting.values(), *self._ready] if member.node == node}
        for number in set(range(count)) - there:
            own = cores // count + (number < cores % count)
            options = {
                "num_cpus": own,
                "num_gpus": 1 if self._on_gpus else 0,
                "max_concurrency": _PIECES_EACH,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            }
            actor = self._ray.remote(Worker).options(**options).remote(*self._built_with, (own, count), self._settings)
            self._starting[actor.problem.remote()] = _Member(node, number, place, actor)

    def _wait(self) -> list[Any]:
        """Return the references of which something is known, after a while at the latest."""
        if not self._ready and time.monotonic() > self._patience:
            self._remark("no machine of the cluster has cores free yet; others may be using them")
            self._patience = float("inf")
        open_ones = [*self._starting, *(reference for member in self._ready for reference in member.pieces)]
        if not open_ones:
            time.sleep(_LOOK_SECONDS / 10)
            return []
        done, _ = self._ray.wait(open_ones, num_returns=1, timeout=_LOOK_SECONDS)
        if done:
            done, _ = self._ray.wait(open_ones, num_returns=len(open_ones), timeout=0)
        return done

    def _take(self, member: _Member, reference: Any) -> None:
        """Let a worker that has started begin, or leave out its machine."""
        try:
            problem = self._get(reference)
        except _Lost as lost:
            self._ends[member.node] += 1
            problem = str(lost) if self._ends[member.node] >= _TRIES or not lost.may_be_chance else ""
        else:
            if not problem:
                self._ready.append(member)
                return
        if problem and member.node not in self._left_out:
            self._left_out[member.node] = problem
            self._remark(f"{member.place} is left out: {problem}")

    def _give_up(self, member: _Member, left: deque[_Piece]) -> None:
        """Give what a worker has not answered to others."""
        self._ready.remove(member)
        self._ends[member.node] += 1
        for first, names in member.pieces.values():
            self._tries[first] += 1
            if self._tries[first] >= _TRIES:
                raise UserError(
                    f"workers ended {_TRIES} times at the pictures from {names[0]} to {names[-1]}; do they fit into "
                    "the machines' memory? What was answered is written"
                )
            left.appendleft((first, names))
        if self._ends[member.node] >= _TRIES:
            self._left_out.setdefault(member.node, "its workers end again and again")
        self._remark(f"a worker on {member.place} is lost; its pictures go to others")
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)

    def _get(self, reference: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(reference)
        except RayTaskError:
            raise
        except RayError as error:
            raise _Lost(error) from error


class _Lost(Exception):
    """A worker ended, or its machine, or what it answered is gone."""

    def __init__(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        foreign = next((line for line in lines if "ModuleNotFoundError" in line), None)
        self.may_be_chance = foreign is None
        super().__init__(foreign or (lines[0] if lines else type(error).__name__))
