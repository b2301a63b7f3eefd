# SPDX-License-Identifier: Apache-2.0
"""What a library says about itself."""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import UserError
from ..schema import decode

FORMAT = 2
DTYPES = ("float32", "float16", "bfloat16")
"""what a library may compute in"""
INT8 = "int8"
"""a library that was quantized: inputs and outputs are float32"""
BATCH = "batch"
"""the entry of a shape that is the batch; `K*batch` is K times as large"""
UNKNOWN = "?"
"""the entry of a shape that changes with the batch in another way"""

WEIGHT_ALIGNMENT = 64
"""the boundary, in bytes of the file, on which each weight lies: TVM's kernels load whole vectors"""

_TENSOR_DTYPES = frozenset(
    (*DTYPES, "float64", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
)
_MOST_ELEMENTS = 2**31
_ENTRY = re.compile(r"([1-9][0-9]{0,8}\*)?batch|\?")
_LAYOUT = re.compile("[A-Z]*")
_RULE = re.compile(r"[A-Za-z]\w{0,80}", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+")

# what `run` shows of a task: the outputs it reads, with their ranks
_BOXES = {"boxes": 3, "scores": 2, "labels": 2}
_ANSWERS: dict[str, dict[str, int]] = {
    "classification": {"logits": 2},
    "semantic_segmentation": {"logits": 4},
    "detection": _BOXES,
    "instance_segmentation": {**_BOXES, "masks": 4},
}
RANDOM_WEIGHTS = "random initialisation (seed 0)"
"""how the origin of weights that nobody trained ends"""
BACKENDS = ("pillow", "opencv")
"""whose resizing a picture is prepared with"""
_WHOLE_PICTURES = ("semantic_segmentation", "detection", "instance_segmentation")
_LARGEST_ZOOM = 16


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

    @functools.cached_property
    def batch_axis(self) -> int | None:
        """The axis along which the batch is, None where the tensor is one for any batch."""
        return next((axis for axis, d in enumerate(self.shape) if _per_picture(d)), None)

    @functools.cached_property
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
        return _sizes(self.shape, batch)


@functools.lru_cache(1024)
def _sizes(shape: tuple[int | str, ...], batch: int) -> tuple[int, ...]:
    return tuple(k * batch if (k := _per_picture(d)) else int(d) for d in shape)


@functools.cache
def _per_picture(entry: int | str) -> int:
    """Return K of `K*batch`, 1 of `batch`, 0 of what does not grow with the batch."""
    if not isinstance(entry, str) or not entry.endswith(BATCH):
        return 0
    return int(entry.removesuffix(BATCH).removesuffix("*") or 1)


@dataclass(frozen=True)
class WeightSpec:
    """A weight in the library's file, contiguous and little endian."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """from the beginning of the file, in bytes"""

    @property
    def bytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * item_bytes(self.dtype)


def item_bytes(dtype: str) -> int:
    """Return how many bytes a number of a dtype has."""
    return int(digits) // 8 if (digits := dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) else 1


@dataclass(frozen=True)
class Form:
    """The shapes that a library's inputs and outputs have for one image size, as in `TensorSpec`."""

    image_size: tuple[int, int]
    """height and width in pixels"""
    inputs: tuple[tuple[int | str, ...], ...]
    outputs: tuple[tuple[int | str, ...], ...]


@dataclass(frozen=True)
class Signature:
    """What the functions of one image size take and return."""

    image_size: tuple[int, int] | None
    """None where the library is for one alone"""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def function(self, batch: int) -> str:
        """Return the name of the library's function for a batch size."""
        return function_name(batch, self.image_size)


def function_name(batch: int, image_size: tuple[int, int] | None) -> str:
    """Return the name of a library's function for a batch size and, where there are several, an image size."""
    return f"batch_{batch}" + ("" if image_size is None else f"_{image_size[0]}x{image_size[1]}")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input: RGB, short side to `resize`, centre crop, (x - mean) / std in 0..255.

    Without `resize` and `crop` the whole picture is placed in the input, see `placement`.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    backend: str = "pillow"
    """one of `BACKENDS`"""


@dataclass(frozen=True)
class KernelCoverage:
    """How many kernels a library has, and where their schedules came from."""

    total: int
    record: int
    """from a tuning record"""
    rule: int
    """the default of a schedule rule"""
    fallback: int
    """no rule was made for it: a sum of products under a rule for programs of any kind, or code of TVM's own"""
    borrowed: int = 0
    """those of `record` that were measured on another target"""
    borrowed_from: str = ""
    """these targets"""
    by_rule: dict[str, Any] = field(default_factory=dict)
    """those of `rule` and `fallback` that a rule scheduled, by the rule's name"""


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution or linear layer of a network that was compiled in int8."""

    number: int
    """among those of the network, in their order"""
    layer: str
    """window, input and output channels, pixels of the result"""
    range_by: str
    """how the range of its input was chosen: `minmax`, `percentile` or `mse`"""
    scale: float
    """an input is `scale * (byte - zero)`"""
    zero: int
    decibels: float
    """signal to noise behind it, with input and weight quantized, on calibration pictures"""
    kept_because: str
    """why it stayed in float32; empty where it did not"""


@dataclass(frozen=True)
class LibraryMetadata:
    """Everything a library says about itself; stored as JSON at its end (`library_file`)."""

    name: str
    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]
    """ascending; the library has a function `batch_N` for each, or `batch_N_HxW` for each and each image size"""
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
    forms: tuple[Form, ...] = ()
    """where the library is for several image sizes, the shapes for each; `inputs` and `outputs` have the first's"""
    weights: tuple[WeightSpec, ...] = ()
    """what each function takes behind its inputs, one behind the other in the file; a GPU's library has them in the
    executable"""
    quantized: tuple[QuantizedLayer, ...] = ()
    """of a network in int8, the layers that could be quantized"""
    cuda_graph: bool = False
    """whether the kernels of a batch size are launched as one CUDA graph"""
    model: str = ""
    """what `compile` was told to compile: a name, a file, `package.module:function`; nothing of a module in memory"""
    num_classes: int | None = None
    """as `compile` was told"""
    format: int = FORMAT

    @property
    def weights_are_random(self) -> bool:
        """Whether nobody trained the weights, or a part of them."""
        return self.weights_origin.endswith(RANDOM_WEIGHTS)

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """What the library takes and returns, for each image size that it is for."""
        if not self.forms:
            return (Signature(None, self.inputs, self.outputs),)
        return tuple(
            Signature(form.image_size, _shaped(self.inputs, form.inputs), _shaped(self.outputs, form.outputs))
            for form in self.forms
        )

    def to_json(self) -> str:
        """Return the metadata as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LibraryMetadata:
        """Read what `to_json` wrote.

        Raises:
            UserError: another format version, fields that are missing or foreign, of another type, out of their range,
                or that contradict each other.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or "format" not in data:
                raise ValueError("it lacks 'format'")
            if data["format"] != FORMAT or type(data["format"]) is not int:
                raise UserError(
                    f"the library has format {data['format']!r:.40}, this version reads {FORMAT}; compile it again"
                )
            metadata: LibraryMetadata = decode(cls, data, "metadata")
            if problem := next(_problems(metadata), None):
                raise ValueError(problem)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"the library's metadata is not as expected ({error}); compile it again") from error
        return metadata


def _shaped(specs: tuple[TensorSpec, ...], shapes: tuple[tuple[int | str, ...], ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=shape) for spec, shape in zip(specs, shapes, strict=True))


def _problems(metadata: LibraryMetadata) -> Iterator[str]:
    """Yield the values that are out of their range or contradict each other, which the fields' types do not say."""
    yield from _problems_of_forms(metadata)
    for signature in metadata.signatures:
        yield from _problems_of_tensors("inputs", signature.inputs)
        yield from _problems_of_tensors("outputs", signature.outputs)
    if not metadata.outputs:
        yield "outputs must not be empty"
    if not metadata.batch_sizes or list(metadata.batch_sizes) != sorted(set(metadata.batch_sizes)):
        yield "batch_sizes must ascend"
    elif metadata.batch_sizes[0] < 1:
        yield "batch_sizes must be positive"
    if metadata.dtype not in (*DTYPES, INT8):
        yield f"dtype must be one of {', '.join((*DTYPES, INT8))}"
    if metadata.device_type not in ("cpu", "cuda"):
        yield "device_type must be cpu or cuda"
    if not isinstance(metadata.target.get("kind"), str):
        yield "target must have a kind"
    if not metadata.name or not metadata.triple:
        yield "name and triple must not be empty"
    if not _VERSION.match(metadata.tvm_version):
        yield "tvm_version must be a version"
    datetime.datetime.fromisoformat(metadata.created)
    if metadata.parameters < 0:
        yield "parameters must not be negative"
    kernels = metadata.kernels
    if min(kernels.record, kernels.rule, kernels.fallback, kernels.borrowed) < 0:
        yield "kernels must not be negative"
    elif kernels.total != kernels.record + kernels.rule + kernels.fallback or kernels.borrowed > kernels.record:
        yield "kernels must add up"
    elif not all(_RULE.fullmatch(name) and type(n) is int and n > 0 for name, n in kernels.by_rule.items()):
        yield "kernels by rule must be positive numbers"
    elif sum(kernels.by_rule.values()) > kernels.rule + kernels.fallback:
        yield "kernels by rule must be some of them"
    yield from _problems_of_weights(metadata)
    yield from _problems_of_pictures(metadata)


def _problems_of_weights(metadata: LibraryMetadata) -> Iterator[str]:
    end = 0
    for weight in metadata.weights:
        if weight.dtype not in _TENSOR_DTYPES:
            yield f"weights: there is no dtype {weight.dtype!r:.40}"
            return
        if any(d < 1 for d in weight.shape) or math.prod(weight.shape) > _MOST_ELEMENTS:
            yield "weights must have sizes"
            return
        if weight.offset < end or weight.offset % WEIGHT_ALIGNMENT:
            yield f"weights must lie one behind the other, each on a boundary of {WEIGHT_ALIGNMENT} bytes"
            return
        end = weight.offset + weight.bytes
    if metadata.weights and metadata.device_type != "cpu":
        yield "weights outside the executable are for a CPU"


def _problems_of_forms(metadata: LibraryMetadata) -> Iterator[str]:
    for form in metadata.forms:
        for name, specs in (("inputs", metadata.inputs), ("outputs", metadata.outputs)):
            if [len(shape) for shape in getattr(form, name)] != [len(spec.shape) for spec in specs]:
                raise ValueError(f"forms must have a shape for each of {name}, of as many axes")
    if not metadata.forms:
        return
    first, *others = metadata.forms
    if not others or any(min(form.image_size) < 1 for form in metadata.forms):
        yield "forms must be two or more, of image sizes"
    if (first.inputs, first.outputs) != tuple(
        tuple(spec.shape for spec in specs) for specs in (metadata.inputs, metadata.outputs)
    ):
        yield "the first of forms must have the shapes of inputs and outputs"
    if len({form.image_size for form in metadata.forms}) < len(metadata.forms) or len(
        {form.inputs for form in metadata.forms}
    ) < len(metadata.forms):
        yield "forms must differ in their inputs"


def _problems_of_tensors(where: str, specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    names = [spec.name for spec in specs]
    if not all(names) or len(set(names)) < len(names):
        yield f"{where} must have names, each its own"
    for spec in specs:
        if spec.dtype not in _TENSOR_DTYPES:
            yield f"{where} {spec.name}: there is no dtype {spec.dtype!r:.40}"
        if any(not _ENTRY.fullmatch(d) if isinstance(d, str) else d < 0 for d in spec.shape):
            yield f'{where} {spec.name}: a shape has sizes and the word "batch"'
        elif math.prod(_per_picture(d) or int(d) for d in spec.shape if d != UNKNOWN) > _MOST_ELEMENTS:
            yield f"{where} {spec.name}: more than {_MOST_ELEMENTS} elements"
        if spec.layout and (not _LAYOUT.fullmatch(spec.layout) or len(spec.layout) != len(spec.shape)):
            yield f"{where} {spec.name}: a layout has a capital letter for each axis"


def _problems_of_pictures(metadata: LibraryMetadata) -> Iterator[str]:
    """Yield what would go wrong when a picture is prepared, and when the answer is shown with names and colours."""
    for name, values in (("class_ids", metadata.class_ids), ("colours", metadata.colours)):
        if values is not None and len(values) != len(metadata.classes or ()):
            yield f"{name} must be as many as classes"
    if any(not 0 <= part <= 255 for colour in metadata.colours or () for part in colour):
        yield "colours must lie between 0 and 255"
    for signature in metadata.signatures:
        yield from picture_problems(
            metadata.task, signature.inputs, signature.outputs, metadata.preprocessing, metadata.classes
        )


def picture_problems(
    task: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    classes: Sequence[str] | None,
) -> Iterator[str]:
    """Yield where preprocessing, task and classes do not fit the inputs and outputs, or each other."""
    if preprocessing is not None:
        shape = inputs[0].shape if len(inputs) == 1 else ()
        if len(shape) != 4 or shape[:2] != (BATCH, 3) or any(isinstance(d, str) or not d for d in shape[2:]):
            yield "preprocessing is for one input of pictures, (batch, 3, height, width)"
        yield from preprocessing_problems(preprocessing)
        if preprocessing.resize is None and task not in _WHOLE_PICTURES:
            yield f"preprocessing without a crop is for {' or '.join(_WHOLE_PICTURES)}"
    shapes = {spec.name: spec.shape for spec in outputs}
    for name, rank in _ANSWERS.get(task, {}).items():
        answer = shapes.get(name, ())
        if len(answer) != rank or answer[0] != BATCH or any(isinstance(d, str) for d in answer[1:]):
            yield f"the task {task} has an output {name} of {rank} axes, batch first"
        elif name == "logits" and classes is not None and answer[1] != len(classes):
            yield "classes must be as many as logits"


def preprocessing_problems(preprocessing: Preprocessing) -> Iterator[str]:
    """Yield the values that prepare no picture."""
    resize, crop = preprocessing.resize, preprocessing.crop
    if (resize is None) != (crop is None):
        yield "preprocessing must have both resize and crop, or neither"
    elif resize is not None and crop is not None and not 0 < crop <= resize <= _LARGEST_ZOOM * crop:
        yield f"preprocessing must crop something, not less than 1 / {_LARGEST_ZOOM} of the resized side"
    if not all(abs(value) < 1e6 for value in preprocessing.mean):
        yield "preprocessing must have a mean of pixels"
    if not all(1e-6 < value < 1e6 for value in preprocessing.std):
        yield "preprocessing must have a positive deviation of pixels"
    if preprocessing.backend not in BACKENDS:
        yield f"preprocessing must have a backend of {' or '.join(BACKENDS)}"


def preprocessing_from(data: dict[str, Any]) -> Preprocessing:
    """Return the `Preprocessing` of a JSON or TOML table."""
    backend = data.get("backend", "pillow")
    return Preprocessing(data.get("resize"), data.get("crop"), tuple(data["mean"]), tuple(data["std"]), backend)
