# SPDX-License-Identifier: Apache-2.0
"""What a user may name as MODEL, made into one thing the compiler takes."""

from __future__ import annotations

import copy
import importlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from .. import zoo
from ..errors import UserError
from ..nn import build_model, load_checkpoint
from ..runtime.metadata import DTYPES, Preprocessing, preprocessing_from
from .half_types import half_type
from .importer import export_module

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
    image_size: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    class_ids: tuple[int, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    output_names: tuple[str, ...] = field(default=())

    @property
    def parameters(self) -> int:
        """The number of trained values."""
        source: Any = self.module if self.module is not None else self.program
        return sum(p.numel() for p in source.parameters())

    def batch_sizes(self, batch: int | Sequence[int] | None) -> tuple[int, ...]:
        """Return the batch sizes to build for, ascending: `batch`, else that of the program or the examples, else 1.

        Raises:
            UserError: sizes that are not positive.
        """
        if batch is None:
            if self.program is not None:
                return (input_batch(self.program)[0],)
            return (self._example_batch,) if self.examples else (1,)
        sizes = (batch,) if isinstance(batch, int) else tuple(batch)
        if not sizes or any(size < 1 for size in sizes):
            raise UserError(f"batch sizes must be positive whole numbers, got {list(sizes)}; for example --batch 1,8")
        return tuple(sorted(set(sizes)))

    def resolve_dtype(self, dtype: str | None) -> str:
        """Return the dtype to build in: `dtype`, else what the program was exported in, else float32.

        Raises:
            UserError: unknown, or one that this network cannot have.
        """
        if self.program is not None:
            own = half_type(self.program) or str(input_batch(self.program)[1]).removeprefix("torch.")
            if dtype not in (None, own) and own != "float32":
                raise UserError(
                    f"{self.name} was exported in {own}, not {dtype}; export it in float32 or leave out --dtype"
                )
            return dtype or own
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        if dtype not in (None, "float32") and self.task in ("detection", "instance_segmentation"):
            raise UserError(f"{self.name} computes boxes in pixels, which {dtype} is too coarse for; leave out --dtype")
        if dtype not in (None, self.own_dtype) and self.module is not None:
            self.module.float()
            self.arguments, self.keywords = tree_map(_to_float, (self.arguments, self.keywords))
        return dtype or self.own_dtype

    @property
    def own_dtype(self) -> str:
        """The half type that all floating-point weights of the module have, or all examples where it has none."""
        weights = self.module.state_dict().values() if self.module is not None else ()
        dtypes = {x.dtype for x in weights if x.is_floating_point()}
        dtypes = dtypes or {x.dtype for x in self.examples if x.is_floating_point()}
        return str(dtypes.pop()).removeprefix("torch.") if dtypes in ({torch.float16}, {torch.bfloat16}) else "float32"

    @property
    def input_size(self) -> tuple[int, ...]:
        """The input's height and width in pixels; where that is no picture, its shape without the batch."""
        if self.image_size is not None:
            return self.image_size
        shape = _input_shapes(self.program)[0][0] if self.program is not None else tuple(self.examples[0].shape)
        return tuple(int(d) for d in (shape[2:] if len(shape) == 4 else shape[1:]))

    def export(self, batch: int) -> torch.export.ExportedProgram:
        """Return the program for a batch of `batch` pictures (N, C, H, W), or of what the examples show.

        Raises:
            UserError: a program exported before has another batch size; a module whose inputs cannot be told.
        """
        if self.program is not None:
            own, _ = input_batch(self.program)
            if own != batch:
                raise UserError(
                    f"{self.name} was exported for batch {own}, not {batch}; export it for that, or leave out --batch"
                )
            return self.program
        assert self.module is not None
        if self.examples:
            own = self._example_batch

            def resize(x: torch.Tensor) -> torch.Tensor:
                return x if batch == own or not x.dim() or len(x) != own else x.new_zeros(batch, *x.shape[1:])

            return export_module(self.module, *tree_map(resize, (self.arguments, self.keywords)))
        assert self.image_size is not None
        weights = [p for p in self.module.parameters() if p.dim() == 4]
        if not weights:
            raise UserError(
                f"cannot tell the inputs of {self.name}, which has no convolution; give example inputs beside the "
                "module: (module, inputs)"
            )
        shape = batch, weights[0].shape[1], *self.image_size
        return export_module(self.module, [torch.zeros(shape, dtype=weights[0].dtype)])

    @property
    def examples(self) -> list[torch.Tensor]:
        """The tensors of the example inputs, in the order in which `torch.export` has them."""
        return tree_leaves((self.arguments, self.keywords))

    @property
    def _example_batch(self) -> int:
        return next((len(x) for x in self.examples if x.dim()), 1)


def resolve_network(
    model: str | Path | torch.nn.Module | tuple[torch.nn.Module, Any],
    *,
    checkpoint: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
) -> Network:
    """Return the network of a zoo name, a `.pt2` file, `package.module:function`, or a module.

    A module, given or returned by the function, may come as (module, inputs) with example inputs: a tensor, a tuple of
    positional arguments or a dictionary of arguments by name; each is a tensor, or a tuple, list or dictionary of them.

    Raises:
        UserError: unknown name, unreadable file, a function that returns no module, a checkpoint that does not fit.
    """
    if not isinstance(model, (str, Path)):
        network = _given(model, "the model", "is")
        assert network.module is not None
        network.name = type(network.module).__name__
        # a copy: compiling must not change the mode, the dtype or the weights of the caller's module
        network.module = copy.deepcopy(network.module).eval()
        if network.own_dtype == "float32":
            network.module.float()
    elif str(model).endswith(".pt2"):
        if checkpoint is not None or image_size is not None:
            raise UserError(f"{model} holds its weights and sizes; leave out --checkpoint and --image-size")
        return _exported(Path(model))
    elif ":" in str(model):
        network = _given(_imported(str(model)), str(model), "returned")
        network.weights_origin = "as built by the function"
    else:
        network = _from_zoo(str(model), own_weights=checkpoint is None)
    if checkpoint is not None:
        assert network.module is not None
        load_checkpoint(network.module, checkpoint)
        network.weights_origin = str(checkpoint)
    if network.examples:
        if image_size is not None:
            raise UserError(f"{network.name} comes with example inputs, which have sizes; leave out --image-size")
    else:
        network.image_size = image_size or network.image_size or (224, 224)
    return network


def _to_float(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x


def _from_zoo(name: str, own_weights: bool) -> Network:
    spec = zoo.get_model(name)
    shipped = spec.weights_file if own_weights else None
    return Network(
        name=spec.name,
        task=spec.task,
        weights_origin=f"models/{shipped.name}" if shipped else "random initialisation (seed 0)",
        module=build_model(spec),
        image_size=spec.image_size,
        preprocessing=preprocessing_from(spec.preprocessing) if spec.preprocessing else None,
        classes=tuple(spec.classes) if spec.classes else None,
        class_ids=spec.class_ids,
        colours=spec.colours,
        output_names=_OUTPUT_NAMES[spec.task],
    )


def _exported(path: Path) -> Network:
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file that torch.export.save wrote")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .pt2 archive, or is truncated; write it with torch.export.save")
    try:
        program = torch.export.load(path)
    except Exception as error:  # the archive's reader raises whatever its parts raise
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; write it with torch.export.save") from error
    return Network(path.stem, "unknown", str(path), program=program)


def _imported(reference: str) -> Any:
    module_name, _, function_name = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import {reference}: {error}; expected package.module:function") from error
    if not callable(function):
        raise UserError(f"{reference} is a {type(function).__name__}; expected a function that returns a module")
    return function()


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
    return network


def input_batch(program: torch.export.ExportedProgram) -> tuple[int, torch.dtype]:
    """Return the batch size that `program` was exported for, and the dtype of its inputs that are no whole numbers."""
    inputs = _input_shapes(program)
    batch = next((int(shape[0]) for shape, _ in inputs if shape), 1)
    return batch, next((dtype for _, dtype in inputs if dtype.is_floating_point), torch.float32)


def _input_shapes(program: torch.export.ExportedProgram) -> Sequence[tuple[tuple[Any, ...], torch.dtype]]:
    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [(tuple(value.shape), value.dtype) for value in values]
