# SPDX-License-Identifier: Apache-2.0
"""Answers about many pictures as JSON lines, CSV or Parquet, written as they come; a run that was killed goes on there.

What a killed run left is whole but for its last line. Parquet has its table of contents at the end, so its answers are
JSON lines in a file beside it, `OUT.parquet.jsonl`, until all are there.
"""

from __future__ import annotations

import csv
import fcntl
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError
from ..extras import missing_extra
from ..files import atomic_write, check_writable
from ..runtime import LibraryMetadata
from ..runtime.predictor import Failure
from ..runtime.results import COLUMNS, Result

SUFFIXES = (".jsonl", ".csv", ".parquet")
"""of the files that are written as answers come"""


class AnswerFile:
    """A file of answers.

    Attributes:
        done: the pictures that it holds already.
        render: makes an answer and its picture's name what `add` takes; it can be pickled, and called elsewhere.
    """

    done: set[str]
    render: Callable[[Result | Failure, str], bytes]

    def add(self, rendered: bytes) -> None:
        """Write what was answered about a picture."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what is left when all answers are there."""


@contextmanager
def open_answers(path: Path, library: Path, metadata: LibraryMetadata, top_k: int) -> Iterator[AnswerFile]:
    """Yield the file `path` to write answers to, behind those that it holds.

    Raises:
        UserError: it holds something else, answers of an older library, another run is writing it, or it cannot be
            written.
    """
    suffix = path.suffix.lower()
    journal = path.with_name(f"{path.name}.jsonl") if suffix == ".parquet" else path
    if suffix != ".jsonl":
        columns = _columns(metadata, top_k)
    if suffix == ".parquet":
        _import_parquet()
        check_writable(path)
    for file in {path, journal}:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no file; name one, which is written as answers come")
        if file.exists() and file.stat().st_size and file.stat().st_mtime < library.stat().st_mtime:
            raise UserError(f"{file} has answers of before {library} was made; remove it, or name another file")
    try:
        stream = open(journal, "a+b")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {journal}: {error.strerror}; name a file in a folder that exists") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another run is writing {journal}; wait for it, or name another file") from error
        if suffix == ".csv":
            yield _Table(path, stream, columns)
        elif suffix == ".parquet":
            yield _Parquet(path, journal, stream, columns)
        else:
            yield _Lines(path, stream)


class _Lines(AnswerFile):
    """A line of JSON for each picture: `{"input": NAME, ...}`, with `error` where it could not be read."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._stream = stream
        self.render = _json_line
        self.done = set()
        for line in _whole_lines(stream):
            try:
                entry = json.loads(line)
                self.done.add(entry["input"])
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise _foreign(path) from error

    def add(self, rendered: bytes) -> None:
        self._stream.write(rendered)
        self._stream.flush()


class _Table(AnswerFile):
    """Rows of CSV; a picture in which nothing is found has a row with its name alone."""

    def __init__(self, path: Path, stream: IO[bytes], columns: Sequence[str]) -> None:
        self._stream = stream
        self.render = functools.partial(_table_lines, columns)
        self.done = set()
        start, end, last, rows = 0, 0, "", 0
        for number, line in enumerate(_whole_lines(stream)):
            try:
                (cells,) = csv.reader([line.decode("utf-8", "surrogateescape")], strict=True)
            except (csv.Error, ValueError) as error:
                raise _foreign(path) from error
            if len(cells) != len(columns) or (not number and tuple(cells) != tuple(columns)):
                raise _foreign(path)
            if number and cells[0] != last:
                start, last, rows = end, cells[0], 0
            rows += 1
            end += len(line)
            if number:
                self.done.add(last)
        if not end:
            stream.write(_csv_lines([list(columns)]))
        elif last and rows and "name" in columns:
            # there may have been more rows of the last picture
            stream.truncate(start)
            self.done.discard(last)

    def add(self, rendered: bytes) -> None:
        self._stream.write(rendered)
        self._stream.flush()


class _Parquet(AnswerFile):
    """The rows of `_Table`, as JSON lines until all are there."""

    def __init__(self, path: Path, journal: Path, stream: IO[bytes], columns: Sequence[str]) -> None:
        self._path, self._journal, self._stream, self._columns = path, journal, stream, columns
        self.render = _rows_line
        self._rows: list[list[dict[str, Any]]] = []
        if path.is_file() and not stream.tell():
            for rows in _read_parquet(path, columns):
                stream.write(json.dumps(rows).encode() + b"\n")
            stream.flush()
        for line in _whole_lines(stream):
            try:
                rows = json.loads(line)
                if not all(set(row) <= set(columns) and isinstance(row["input"], str) for row in rows) or not rows:
                    raise ValueError
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise _foreign(journal) from error
            self._rows.append(rows)
        self.done = {rows[0]["input"] for rows in self._rows}

    def add(self, rendered: bytes) -> None:
        self._rows.append(json.loads(rendered))
        self._stream.write(rendered)
        self._stream.flush()

    def finish(self) -> None:
        arrow, parquet = _import_parquet()
        kinds = {name: arrow.float64() for name in ("score", "share", "x1", "y1", "x2", "y2")}
        for name in self._columns:
            if name.startswith("class"):
                kinds[name] = arrow.int64()
            elif name.startswith("probability"):
                kinds[name] = arrow.float64()
        fields = [(name, kinds.get(name, arrow.string())) for name in self._columns]
        rows = [row for rows in self._rows for row in rows]
        for row in rows:
            row["input"] = row["input"].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        with atomic_write(self._path) as temporary:
            parquet.write_table(arrow.Table.from_pylist(rows, schema=arrow.schema(fields)), temporary)
        self._journal.unlink()


def _columns(metadata: LibraryMetadata, top_k: int) -> tuple[str, ...]:
    if metadata.task == "classification":
        count = min(top_k, int(metadata.outputs[0].shape[1]))
        named = tuple(f"{key}_{i}" for i in range(1, count + 1) for key in ("class", "name", "probability"))
    elif metadata.task in COLUMNS:
        named = COLUMNS[metadata.task]
    else:
        raise UserError(f"the outputs of {metadata.name} are no table; write them to .jsonl or .npz")
    return ("input", *named, "error")


def _rows(answer: Result | Failure, name: str) -> list[dict[str, Any]]:
    if isinstance(answer, Failure):
        return [{"input": name, "error": str(answer.error)}]
    return [{"input": name, **row} for row in answer.rows()] or [{"input": name}]


def said_of(answer: Result | Failure, name: str) -> dict[str, Any]:
    """Return what is told of a picture as plain data: `input` and the answer's `to_json`, or `error`."""
    return {"input": name, **({"error": str(answer.error)} if isinstance(answer, Failure) else answer.to_json())}


def _json_line(answer: Result | Failure, name: str) -> bytes:
    return json.dumps(said_of(answer, name)).encode() + b"\n"


def _rows_line(answer: Result | Failure, name: str) -> bytes:
    return json.dumps(_rows(answer, name)).encode() + b"\n"


def _table_lines(columns: Sequence[str], answer: Result | Failure, name: str) -> bytes:
    return _csv_lines([[row.get(column, "") for column in columns] for row in _rows(answer, name)])


def _csv_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    for row in rows:
        cells = ["" if cell is None else cell for cell in row]
        if any(isinstance(cell, str) and ("\n" in cell or "\r" in cell) for cell in cells):
            raise UserError(f"{cells[0]!a:.80} has a line's end in its name, which CSV here has not; write to .jsonl")
        csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, and cut off a last one that is not whole; the file then stands at its end."""
    stream.seek(0)
    end = 0
    for line in stream:
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield line
    stream.truncate(end)
    stream.seek(0, os.SEEK_END)


def _foreign(path: Path) -> UserError:
    return UserError(f"{path} exists, and has no answers of such a run to go on from; remove it, or name another file")


def _import_parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error, "writing Parquet")) is None:
            raise
        raise missing from error
    return pyarrow, pyarrow.parquet


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each picture."""
    arrow, parquet = _import_parquet()
    try:
        rows = parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise _foreign(path) from error
    if rows and tuple(rows[0]) != tuple(columns):
        raise _foreign(path)
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["input"], []).append({key: value for key, value in row.items() if value is not None})
    yield from grouped.values()


class Gathered:
    """The outputs of all pictures, for an .npz: under their names, one behind the other, and `input` with the files."""

    def __init__(self) -> None:
        self._outputs: dict[int, tuple[str, Mapping[str, np.ndarray]]] = {}

    def add(self, number: int, name: str, outputs: Mapping[str, np.ndarray]) -> None:
        """Add the outputs of the picture `number`."""
        self._outputs[number] = name, outputs

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to write, in the pictures' order."""
        names, outputs = zip(*(self._outputs[number] for number in sorted(self._outputs)), strict=True)
        return {**{key: np.concatenate([one[key] for one in outputs]) for key in outputs[0]}, "input": np.array(names)}
