# SPDX-License-Identifier: Apache-2.0
"""What a library says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError

FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16")
"""what a library may compute in"""
BATCH = "batch"
"""the entry of a shape that is the batch; `K*batch` is K times as large"""
UNKNOWN = "?"
"""the entry of a shape that changes with the batch in another way"""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    `shape` has the word `batch` where the batch is, `K*batch` where each picture has K entries, one picture's after
    another's, and `?` where the size depends on the batch in another way. Without such a word the tensor is one for any
    batch.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    layout: str = ""

    @property
    def batched(self) -> bool:
        """Whether the tensor has a batch."""
        return self.batch_axis is not None

    @property
    def batch_axis(self) -> int | None:
        """The axis along which the batch is, None where the tensor is one for any batch."""
        return next((axis for axis, d in enumerate(self.shape) if _per_picture(d)), None)

    @property
    def per_picture(self) -> int:
        """How many entries of `batch_axis` a picture has; 0 where there is no such axis."""
        return 0 if self.batch_axis is None else _per_picture(self.shape[self.batch_axis])

    def shape_for(self, batch: int) -> tuple[int, ...]:
        """Return the shape with a batch of `batch`.

        Raises:
            UserError: an entry is `?`.
        """
        if UNKNOWN in self.shape:
            raise UserError(f"the shape of {self.name!r}, {self.shape}, is not told by the batch size")
        return tuple(k * batch if (k := _per_picture(d)) else int(d) for d in self.shape)


def _per_picture(entry: int | str) -> int:
    """Return K of `K*batch`, 1 of `batch`, 0 of what does not grow with the batch."""
    if not isinstance(entry, str) or not entry.endswith(BATCH):
        return 0
    return int(entry.removesuffix(BATCH).removesuffix("*") or 1)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input: RGB, short side to `resize`, centre crop, (x - mean) / std in 0..255.

    Without `resize` and `crop` the whole picture is placed in the input, see `placement`.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class KernelCoverage:
    """How many kernels a library has, and where their schedules came from."""

    total: int
    record: int
    """from a tuning record"""
    rule: int
    """the default of a schedule rule"""
    fallback: int
    """no schedule of ours"""
    borrowed: int = 0
    """those of `record` that were measured on another target"""
    borrowed_from: str = ""
    """these targets"""


@dataclass(frozen=True)
class LibraryMetadata:
    """Everything a library says about itself; stored as JSON at its end (`library_file`)."""

    name: str
    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]
    """ascending; the library has a function `batch_N` for each"""
    dtype: str
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    target: dict[str, Any]
    device_type: str
    """"cpu" or "cuda\""""
    triple: str
    cpu: str
    cpu_features: tuple[str, ...]
    """what the CPU must have, in the words of /proc/cpuinfo"""
    tvm_version: str
    package_version: str
    weights_origin: str
    parameters: int
    kernels: KernelCoverage
    created: str
    class_ids: tuple[int, ...] | None = None
    """the data set's own numbers of the classes, where it counts differently"""
    colours: tuple[tuple[int, int, int], ...] | None = None
    """of the classes in a colour map: red, green, blue"""
    mixed_by: str = ""
    """what mixes the pictures of a batch, so that no other batch sizes are served; empty where each picture's outputs
    depend on that picture alone"""
    cuda_graph: bool = False
    """whether the kernels of a batch size are launched as one CUDA graph"""
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the metadata as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LibraryMetadata:
        """Read what `to_json` wrote.

        Raises:
            UserError: another format version, or fields that are missing or foreign.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise UserError(
                    f"the library has format {data['format']}, this version reads {FORMAT}; compile it again"
                )
            data["inputs"] = tuple(_tensor(spec) for spec in data["inputs"])
            data["outputs"] = tuple(_tensor(spec) for spec in data["outputs"])
            data["kernels"] = KernelCoverage(**data["kernels"])
            data["batch_sizes"] = tuple(data["batch_sizes"])
            data["cpu_features"] = tuple(data["cpu_features"])
            if data["preprocessing"] is not None:
                data["preprocessing"] = preprocessing_from(data["preprocessing"])
            for key in ("classes", "class_ids"):
                if data.get(key) is not None:
                    data[key] = tuple(data[key])
            if data.get("colours") is not None:
                data["colours"] = tuple(tuple(colour) for colour in data["colours"])
            return cls(**data)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"the library's metadata is not as expected ({error}); compile it again") from error


def preprocessing_from(data: dict[str, Any]) -> Preprocessing:
    """Return the `Preprocessing` of a JSON or TOML table."""
    return Preprocessing(data.get("resize"), data.get("crop"), tuple(data["mean"]), tuple(data["std"]))


def _tensor(data: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**data, "shape": tuple(data["shape"])})
