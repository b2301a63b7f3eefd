# SPDX-License-Identifier: Apache-2.0
"""What a user may name as MODEL, made into one thing the compiler takes."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from .. import zoo
from ..arguments import Size, checked
from ..errors import UserError
from ..nn import load_checkpoint
from ..nn.build import build_model, count_classes, with_classes
from ..nn.checkpoint import fit_names
from ..nn.checkpoint_file import Checkpoint, read_checkpoint
from ..runtime.metadata import BATCH, DTYPES, RANDOM_WEIGHTS, Preprocessing, TensorSpec, preprocessing_from
from .batch_axes import BatchAxes, compare_batches, fixed
from .dynamic_sizes import DynamicSizes, ImageSize
from .exported_program import load_program
from .half_types import half_type
from .importer import export_module
from .other_files import refuse_other_file
from .rebatch import other_batch, rebatched_axes
from .retype import retyped
from .sizes import check_size
from .torch_log import no_torch_log
from .training_mode import for_inference
from .user_data import read_classes, read_preprocessing
from .user_function import call_user_function

_DETECTIONS = ("boxes", "scores", "labels")
_OUTPUT_NAMES: dict[str, tuple[str, ...]] = {
    "classification": ("logits",),
    "semantic_segmentation": ("logits",),
    "detection": _DETECTIONS,
    "instance_segmentation": (*_DETECTIONS, "masks"),
}


@dataclass
class Network:
    """A network to compile: a module traced anew for each batch size, or a program exported before."""

    name: str
    task: str
    weights_origin: str
    module: torch.nn.Module | None = None
    program: torch.export.ExportedProgram | None = None
    arguments: tuple[Any, ...] = ()
    """examples of the module's positional arguments; without any, it takes one (N, C, H, W) of `image_size`"""
    keywords: dict[str, Any] = field(default_factory=dict)
    """examples of its arguments by name"""
    image_sizes: tuple[ImageSize, ...] = ()
    """heights and widths to build for; none where the inputs are no pictures, or have the sizes of examples"""
    sizes: DynamicSizes | None = None
    """which sizes of the program vary"""
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    classes_given: bool = False
    """by the user, not by a checkpoint"""
    class_ids: tuple[int, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    num_classes: int | None = None
    """of a network of the zoo"""
    output_names: tuple[str, ...] = field(default=())
    was_training: bool = False
    remarks: list[str] = field(default_factory=list)
    """what was chosen of a checkpoint"""
    _programs: dict[tuple[int, ImageSize | None], torch.export.ExportedProgram] = field(
        default_factory=dict, repr=False
    )
    """those exported so far, by batch and image size"""

    @property
    def parameters(self) -> int:
        """The number of trained values: those of frozen parameters are not."""
        source: Any = self.module if self.module is not None else self.program
        return sum(p.numel() for p in source.parameters() if p.requires_grad)

    @checked
    def batch_sizes(self, batch: Size | Sequence[Size] | None) -> tuple[int, ...]:
        """Return the batch sizes to build for, ascending: `batch`, else that of the program or the examples, else 1.

        Raises:
            UserError: sizes that are not positive.
        """
        if batch is None:
            if self.sizes is not None and self.sizes.batch:
                return (self.sizes.default_batch(),)
            if self.program is not None:
                return (input_batch(self.program),)
            return (self._example_batch,) if self.examples else (1,)
        sizes = (batch,) if isinstance(batch, int) else tuple(batch)
        if not sizes:
            raise UserError("batch must have at least one size, got none; for example --batch 1,8")
        return tuple(sorted(set(sizes)))

    def resolve_dtype(self, dtype: str | None) -> str:
        """Return the dtype to build in: `dtype`, else what the program was exported in, else float32.

        Raises:
            UserError: unknown, or one that this network cannot have.
        """
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        if self.program is not None:
            own = half_type(self.program) or str(_float_dtype(self.program)).removeprefix("torch.")
            if own not in DTYPES:
                raise UserError(f"{self.name} was exported in {own}; export it in one of {', '.join(DTYPES)}")
            if dtype not in (None, own) and own != "float32":
                raise UserError(
                    f"{self.name} was exported in {own}, not {dtype}; export it in float32 or leave out --dtype"
                )
            return dtype or own
        if dtype not in (None, "float32") and self.task in ("detection", "instance_segmentation"):
            raise UserError(f"{self.name} computes boxes in pixels, which {dtype} is too coarse for; leave out --dtype")
        if dtype not in (None, self.own_dtype) and self.module is not None:
            self.module.float()
            self._programs.clear()
            self.arguments, self.keywords = tree_map(_to_float, (self.arguments, self.keywords))
        return dtype or self.own_dtype

    def tell_task(self, outputs: Sequence[TensorSpec]) -> None:
        """Take a user's network with named classes for what its one output shows: classes of pictures or of pixels.

        Names of a checkpoint are let go where it shows neither.

        Raises:
            UserError: it shows neither, and the user named the classes.
        """
        if self.task != "unknown" or self.classes is None:
            return
        kinds = {2: "classification", 4: "semantic_segmentation"}
        shape = outputs[0].shape if len(outputs) == 1 else ()
        if len(shape) not in kinds or shape[0] != BATCH or shape[1] != len(self.classes):
            if not self.classes_given:
                self.classes = self.colours = None
                return
            shapes = ", ".join(f"({', '.join(map(str, spec.shape))})" for spec in outputs)
            raise UserError(
                f"{len(self.classes)} classes are named, and {self.name} answers with {shapes}; expected one output, "
                f"(batch, {len(self.classes)}) or (batch, {len(self.classes)}, height, width)"
            )
        self.task, self.output_names = kinds[len(shape)], ("logits",)

    @property
    def own_dtype(self) -> str:
        """The half type that all floating-point weights of the module have, or all examples where it has none."""
        weights = self.module.state_dict().values() if self.module is not None else ()
        # quantized modules keep other things than tensors among them
        dtypes = {x.dtype for x in weights if isinstance(x, torch.Tensor) and x.is_floating_point()}
        dtypes = dtypes or {x.dtype for x in self.examples if x.is_floating_point()}
        return str(dtypes.pop()).removeprefix("torch.") if dtypes in ({torch.float16}, {torch.bfloat16}) else "float32"

    def notes(self) -> list[str]:
        """Return what the network's author might want to know of how it is taken."""
        what = "the module is" if self.module is not None else "the program was exported"
        training = [f"{what} in training mode; it is compiled as for inference, as after module.eval()"]
        return self.remarks + training * self.was_training

    def check_weights(self, dtype: str) -> None:
        """Check that the weights are numbers in `dtype`, too: float16 ends at 65504.

        Buffers are not looked at: statistics are folded before they are rounded, and what masks with -1e9 may do so
        with the lowest number there is.

        Raises:
            UserError: one is finite in its own type and infinite in `dtype`; it is named.
        """
        source: Any = self.module if self.module is not None else self.program
        wanted = getattr(torch, dtype)
        for name, weight in source.named_parameters():
            rounded = weight.detach().to(wanted)
            if weight.is_floating_point() and bool((rounded.isinf() & weight.isfinite()).any()):
                largest = float(weight.detach()[weight.isfinite()].abs().max())
                raise UserError(
                    f"{name} of {self.name} has values of up to {largest:.3g}, and those of {dtype} end at "
                    f"{torch.finfo(wanted).max:.3g}; compile it in float32" + ", or bfloat16" * (dtype == "float16")
                )

    @property
    def takes_pictures(self) -> bool:
        """Whether the one input is known to be pictures (N, C, H, W)."""
        return self.program is None and not self.examples

    @property
    def input_size(self) -> tuple[int, ...]:
        """The input's height and width in pixels; where that is no picture, its shape without the batch."""
        if self.image_sizes:
            return self.image_sizes[0]
        shape = _input_shapes(self.program)[0][0] if self.program is not None else tuple(self.examples[0].shape)
        return tuple(int(d) for d in (shape[2:] if len(shape) == 4 else shape[1:]))

    def export(self, batch: int, image_size: ImageSize | None = None) -> torch.export.ExportedProgram:
        """Return the program for a batch of `batch` pictures (N, C, H, W), or of what the examples show.

        Args:
            image_size: one of `image_sizes`, the first by default.

        Raises:
            UserError: a program exported before has another batch size; a module whose inputs cannot be told.
        """
        key = batch, image_size or next(iter(self.image_sizes), None)
        if key not in self._programs:
            self._programs[key] = self._export(*key)
        return self._programs[key]

    def _export(self, batch: int, image_size: ImageSize | None) -> torch.export.ExportedProgram:
        if self.program is not None:
            assert self.sizes is not None
            own = batch if self.sizes.batch else input_batch(self.program)
            if own != batch:
                raise UserError(
                    f"{self.name} was exported for batch {own}, not {batch}; export it for that, or leave out --batch"
                )
            varies = self.sizes.batch or self.sizes.picture
            return self.sizes.bind(batch, image_size) if varies else self.program
        assert self.module is not None
        if self.examples:
            return self._export_resized(self._example_batch, batch)
        assert image_size is not None
        convolutions = [part.in_channels for part in self.module.modules() if isinstance(part, torch.nn.Conv2d)]
        channels = [*convolutions, *(p.shape[1] for p in self.module.parameters() if p.dim() == 4)]
        if not channels:
            raise UserError(
                f"cannot tell the inputs of {self.name}, which has no convolution; give example inputs beside the "
                "module: (module, inputs)"
            )
        shape = (batch, channels[0], *image_size)
        check_size(shape)
        return export_module(self.module, [torch.zeros(shape, dtype=getattr(torch, self.own_dtype))])

    def _export_resized(self, own: int, batch: int) -> torch.export.ExportedProgram:
        """Trace the examples with `batch` where their first size is `own`."""

        def resize(x: torch.Tensor) -> torch.Tensor:
            check_size((batch, *x.shape[1:]) if x.dim() else ())
            return x if batch == own or not x.dim() or len(x) != own else x.new_zeros(batch, *x.shape[1:])

        assert self.module is not None
        return export_module(self.module, *tree_map(resize, (self.arguments, self.keywords)))

    def batch_axes(self, batches: Sequence[int], image_size: ImageSize | None = None) -> BatchAxes:
        """Return where the batch is in inputs and outputs, by comparing the programs for two batch sizes.

        Raises:
            UserError: see `export`.
        """
        first, *others = batches
        program = self.export(first, image_size)
        if self.sizes is not None and not self.sizes.batch:
            return rebatched_axes(program, first)
        if not others:
            try:
                others = [other_batch(first)]
                with no_torch_log():
                    self.export(others[0], image_size)
            except UserError:
                return fixed(program)
        compared = [compare_batches(program, first, self.export(other, image_size), other) for other in others]
        return next((axes for axes in compared if axes.mixed_by), compared[0])

    @property
    def examples(self) -> list[torch.Tensor]:
        """The tensors of the example inputs, in the order in which `torch.export` has them."""
        return tree_leaves((self.arguments, self.keywords))

    @cached_property
    def _example_batch(self) -> int:
        """The first size of the examples that can be another: that of most of them, or of those of most dimensions."""
        # a batch of none cannot be another
        sizes = [(len(x), x.dim()) for x in self.examples if x.dim() and len(x)]
        if not sizes:
            return 1
        counts = Counter(size for size, _ in sizes)
        candidates = sorted(counts, key=lambda size: (-counts[size], -max(d for s, d in sizes if s == size)))
        if len(candidates) > 1:
            for own in candidates:
                with contextlib.suppress(UserError), no_torch_log():
                    self._programs[other_batch(own), None] = self._export_resized(own, other_batch(own))
                    return own
        return candidates[0]


@checked
def resolve_network(
    model: Any,
    *,
    checkpoint: str | Path | Mapping[str, Any] | None = None,
    checkpoint_key: str | None = None,
    image_size: tuple[Size, Size] | Sequence[tuple[Size, Size]] | None = None,
    num_classes: Size | None = None,
    classes: str | Path | Sequence[str] | None = None,
    preprocessing: str | Path | Mapping[str, Any] | None = None,
) -> Network:
    """Return the network of a zoo name, of a file like the zoo's, a `.pt2` file, a function, a program or a module.

    A module, given or returned by the function, may come as (module, inputs) with example inputs: a tensor, a tuple of
    positional arguments or a dictionary of arguments by name; each is a tensor, or a tuple, list or dictionary of them.
    Weights and examples in float64 are taken in float32, examples on the device meta as zeros.

    Args:
        image_size: height and width, or several of them.
        num_classes: of a network of the zoo, by default as the checkpoint's head has; of a function, its argument.
        classes, preprocessing: see `user_data`; by default those of the checkpoint, else of the zoo.

    Raises:
        UserError: unknown name, unreadable file, a function that returns no module, a checkpoint that does not fit.
    """
    if checkpoint_key is not None and checkpoint is None:
        raise UserError("--checkpoint-key names a part of a checkpoint; give that as --checkpoint")
    named = read_classes(classes) if classes is not None else None
    prepared = read_preprocessing(preprocessing) if preprocessing is not None else None
    image_sizes = _as_sizes(image_size)
    saved = isinstance(model, (str, Path)) and str(model).endswith(".pt2")
    if saved or isinstance(model, torch.export.ExportedProgram):
        name, origin = (Path(model).stem, str(model)) if saved else (_class_name(model), "as given")
        shown = origin if saved else name
        if (checkpoint, num_classes) != (None, None):
            raise UserError(f"{shown} has its weights and classes; leave out --checkpoint and --num-classes")
        network = _from_program(name, origin, load_program(Path(model)) if saved else model, image_sizes)
    else:
        read = read_checkpoint(checkpoint, checkpoint_key) if checkpoint is not None else None
        network = _with_module(model, read, num_classes)
        if read is not None:
            random = network.weights_origin == RANDOM_WEIGHTS
            network.weights_origin = "a state dict" if isinstance(checkpoint, Mapping) else str(checkpoint)
            if checkpoint_key is not None:
                network.weights_origin += f":{checkpoint_key}"
            if _load(network, read) and random:
                network.weights_origin += f", the rest {RANDOM_WEIGHTS}"
            if prepared is None:
                _take_pixels(network, read)
            if named is None and read.classes is not None:
                _take_classes(network, read)
        if network.examples:
            if image_sizes:
                raise UserError(f"{network.name} comes with example inputs, which have sizes; leave out --image-size")
        else:
            network.image_sizes = image_sizes or network.image_sizes or ((224, 224),)
    if named is not None:
        if network.num_classes not in (None, len(named.names)):
            raise UserError(
                f"{network.name} has {network.num_classes} classes, and {len(named.names)} are named; expected a name "
                "for each, in the order of the logits"
            )
        network.classes, network.class_ids, network.colours = named.names, named.ids, named.colours
        network.classes_given = True
    if prepared is not None:
        network.preprocessing = prepared
    return network


def _with_module(model: Any, checkpoint: Checkpoint | None, num_classes: int | None) -> Network:
    """Return a network with a module, which is not yet filled from `checkpoint`."""
    if not isinstance(model, (str, Path)):
        if num_classes is not None:
            raise UserError("a module has the classes that it was built with; leave out num_classes")
        network = _given(model, "the model", "is")
        assert network.module is not None
        _check_values(type(network.module).__name__, _tensors(network.module))
        network.name = type(network.module).__name__
        network.was_training = _acts_in_training(network.module)
        # a copy: compiling must not change the mode, the dtype or the weights of the caller's module
        network.module = _copy(network.module).eval()
    elif ":" in str(model):
        arguments = {} if num_classes is None else {"num_classes": num_classes}
        network = _given(call_user_function(str(model), **arguments), str(model), "returned")
        network.weights_origin = "as built by the function"
        assert network.module is not None
        if checkpoint is None:
            _check_values(type(network.module).__name__, _tensors(network.module))
    else:
        if str(model).lower().endswith(".toml"):
            spec = zoo.read_model(Path(model))
        else:
            refuse_other_file(str(model))
            spec = zoo.get_model(str(model))
        network = _from_zoo(spec, checkpoint, num_classes)
    assert network.module is not None
    if network.own_dtype == "float32":
        network.module.float()
        network.arguments, network.keywords = tree_map(_to_single, (network.arguments, network.keywords))
    return network


def _as_sizes(image_size: ImageSize | Sequence[ImageSize] | None) -> tuple[ImageSize, ...]:
    """Return the image sizes in their order, each once.

    Raises:
        UserError: there are none.
    """
    if image_size is None:
        return ()
    if not image_size:
        raise UserError("image_size must have at least one size, got none; for example --image-size 224x224,320x320")
    sizes: Any = [image_size] if isinstance(image_size[0], int) else image_size
    return tuple(dict.fromkeys((height, width) for height, width in sizes))


def _from_program(
    name: str, origin: str, program: torch.export.ExportedProgram, image_sizes: tuple[ImageSize, ...]
) -> Network:
    shown = origin if origin.endswith(".pt2") else name
    _check_values(shown, itertools.chain(program.state_dict.items(), program.constants.items()))
    inference = for_inference(program)
    was_training = inference is not program
    if half_type(inference) is None and _float_dtype(inference) == torch.float64:
        inference = retyped(inference, {torch.float64: torch.float32})
    sizes = DynamicSizes(shown, inference)
    if image_sizes and not sizes.picture:
        raise UserError(f"{shown} was exported with its sizes; leave out --image-size")
    if sizes.picture:
        image_sizes = image_sizes or (sizes.default_image_size(),)
    return Network(
        name, "unknown", origin, program=inference, image_sizes=image_sizes, sizes=sizes, was_training=was_training
    )


def _class_name(program: torch.export.ExportedProgram) -> str:
    """Return the name of the class whose module `program` was."""
    stacks = (node.meta.get("nn_module_stack") for node in program.graph.nodes)
    first = next((next(iter(stack.values())) for stack in stacks if stack), ("", "program"))
    return str(first[1]).rpartition(".")[2]


def _take_classes(network: Network, checkpoint: Checkpoint) -> None:
    """Take the names of classes that a checkpoint tells, where they are as many as the network's."""
    assert checkpoint.classes is not None
    if network.classes is not None and [x.replace("_", " ") for x in checkpoint.classes] == list(network.classes):
        return  # the zoo knows the data set's numbers and colours, too
    if network.num_classes in (None, len(checkpoint.classes)):
        network.classes, network.class_ids, network.colours = checkpoint.classes, None, checkpoint.colours
    else:
        network.remarks.append(
            f"{checkpoint.name} names {len(checkpoint.classes)} classes, of {network.num_classes}; they are not taken"
        )


def _load(network: Network, checkpoint: Checkpoint) -> bool:
    """Fill the network's module; return whether the checkpoint has the backbone alone."""
    assert network.module is not None
    network.remarks += load_checkpoint(network.module, checkpoint)
    return fit_names(network.module, checkpoint.state).target is not network.module


def _take_pixels(network: Network, checkpoint: Checkpoint) -> None:
    """Take the mean and deviation of pixels that a checkpoint tells."""
    if checkpoint.mean is None or checkpoint.std is None:
        return
    if network.preprocessing is None:
        network.remarks.append(f"{checkpoint.name} tells mean and std of pixels; how to resize, --preprocessing tells")
    else:
        network.preprocessing = replace(network.preprocessing, mean=checkpoint.mean, std=checkpoint.std)
        network.remarks.append("mean and std of pixels are those of the checkpoint's data_preprocessor")


def _acts_in_training(module: torch.nn.Module) -> bool:
    """Return whether `module` holds, in training mode, a part that does something else then."""
    kinds = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
    return any(part.training for part in module.modules() if isinstance(part, kinds))


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _check_values(network: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Check that weights and buffers are there.

    Raises:
        UserError: one has a shape alone (device "meta"), or not even that (a lazy module before its first call).
    """
    for name, tensor in tensors:
        if torch.nn.parameter.is_lazy(tensor):
            raise UserError(f"{name} of {network} has no shape yet; call the module once, then compile")
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            raise UserError(
                f"{name} of {network} has no values, it is on the device meta; load the weights by "
                "load_state_dict(..., assign=True)"
            )


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `module` and its tensors.

    Raises:
        UserError: something in it cannot be copied.
    """
    # tensors that were computed, as the weight of `weight_norm`, are copied as values
    computed = [x for part in module.modules() for x in vars(part).values() if isinstance(x, torch.Tensor)]
    memo: dict[int, Any] = {id(x): x.detach().clone() for x in computed if not x.is_leaf}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever the parts' own copying raises
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{type(module).__name__} cannot be copied ({reason[0] if reason else type(error).__name__}), so that it "
            "would stay as it is; take out what copy.deepcopy refuses, or name it as package.module:function"
        ) from error


def _to_single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.float64 else x


def _with_values(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x, device="cpu") if x.is_meta else x


def _to_float(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x


def _from_zoo(spec: zoo.ModelSpec, checkpoint: Checkpoint | None, num_classes: int | None) -> Network:
    if num_classes is not None and "num_classes" not in spec.network:
        raise UserError(f"[network] of {spec.name}.toml has no num_classes; leave out --num-classes")
    if checkpoint is not None and num_classes is None:
        num_classes = count_classes(spec, checkpoint.state)
    if num_classes is not None:
        spec = with_classes(spec, num_classes)
    shipped = spec.weights_file if checkpoint is None else None
    return Network(
        name=spec.name,
        task=spec.task,
        weights_origin=f"models/{shipped.name}" if shipped else RANDOM_WEIGHTS,
        module=build_model(spec, pretrained=shipped is not None),
        image_sizes=(spec.image_size,),
        preprocessing=preprocessing_from(spec.preprocessing) if spec.preprocessing else None,
        classes=tuple(spec.classes) if spec.classes else None,
        class_ids=spec.class_ids,
        colours=spec.colours,
        num_classes=spec.network.get("num_classes"),
        output_names=_OUTPUT_NAMES[spec.task],
    )


def _given(model: Any, name: str, verb: str) -> Network:
    """Return the network of a module or of (module, example inputs); `name` and `verb` are for messages."""
    module, inputs = model if isinstance(model, tuple) and len(model) == 2 else (model, ())
    if not isinstance(module, torch.nn.Module):
        raise UserError(
            f"{name} {verb} {type(module).__name__}; expected a torch.nn.Module, or (module, example inputs)"
        )
    network = Network(name, "unknown", "as given", module=module)
    if isinstance(inputs, dict):
        network.keywords = inputs
    else:
        network.arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    strange = [type(x).__name__ for x in network.examples if not isinstance(x, torch.Tensor)]
    if strange:
        raise UserError(f"the example inputs of {name} must be tensors, got {', '.join(strange)}")
    if any(x.layout is not torch.strided for x in network.examples):
        raise UserError(f"the example inputs of {name} are sparse; give dense ones (x.to_dense())")
    network.arguments, network.keywords = tree_map(_with_values, (network.arguments, network.keywords))
    return network


def input_batch(program: torch.export.ExportedProgram) -> int:
    """Return the batch size that `program` was exported for."""
    return next((int(shape[0]) for shape, _ in _input_shapes(program) if shape), 1)


def _float_dtype(program: torch.export.ExportedProgram) -> torch.dtype:
    """Return the dtype of the floating inputs of `program`, else of its weights."""
    dtypes = [dtype for _, dtype in _input_shapes(program)] + [p.dtype for p in program.parameters()]
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _input_shapes(program: torch.export.ExportedProgram) -> Sequence[tuple[tuple[Any, ...], torch.dtype]]:
    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [(tuple(value.shape), value.dtype) for value in values if isinstance(value, torch.Tensor)]
