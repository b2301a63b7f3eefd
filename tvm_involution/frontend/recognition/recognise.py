# SPDX-License-Identifier: Apache-2.0
"""Find regions that are involutions, and put the operator in their place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..source import source_line
from .activations import activate_before_repetition
from .attention import Attention, attention_of, proposals
from .forms import Fixed, Form, Node, Path, Product, forms_of, shape_of
from .operators import ADDITIONS, CONVOLUTION, PAD, PRODUCTS, SUMS, WINDOWS
from .probing import NotAnInvolution, Wiring, equal, probe
from .region import Region, between
from .replacement import OPERATORS, Replacement
from .windows import add_no_zeros, call, pad_before, wrap_before

_ATEN = torch.ops.aten
_LOCAL_ATTENTION = torch.ops.tvm_involution.local_attention2d.default


def recognise(program: torch.export.ExportedProgram) -> list[str]:
    """Replace what is an involution in `program`, which consists of core operators and is changed.

    Returns:
        A line for each product with windows that is none, with the user's file and line.
    """
    return _Recognition(program).run()


class _Recognition:
    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._module = program.graph_module
        self._graph = program.graph_module.graph
        signature = program.graph_signature
        tensors = {**program.state_dict, **program.constants}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._weights = {
            node: tensors[targets[node.name]]
            for node in self._graph.nodes
            if node.op == "placeholder" and isinstance(tensors.get(targets.get(node.name, "")), torch.Tensor)
        }
        self._forms: dict[Node, Form] = {}
        self._known: dict[Hashable, Replacement | None] = {}
        self._attentions: dict[Hashable, Attention | None] = {}

    def run(self) -> list[str]:
        activate_before_repetition(self._graph)
        add_no_zeros(self._graph)
        pad_before(self._graph, self._weights.get)
        wrap_before(self._graph, self._weights.get)
        # an involution's result may be what another is made of, which shows once the first is one call
        found = True
        while found:
            found, unknown = self._replace_all()
            self._graph.eliminate_dead_code()
            if self._attend():
                found = True
                self._graph.eliminate_dead_code()
        self._module.recompile()
        return unknown

    def _replace_all(self) -> tuple[bool, list[str]]:
        """Return whether anything was replaced, and a line for each product with windows that was not."""
        self._forms = forms_of(self._graph, set(self._weights))
        found, seen = False, set[Node]()
        unknown: dict[str, None] = {}
        for node in list(self._graph.nodes):
            if not self._is_result(node):
                continue
            if self._replace(node, seen):
                found = True
            elif self._has_windows(node):
                written = source_line(self._last_step(node))
                line = f"a product with windows is computed as it is written, not as an involution{written}"
                unknown[line] = None
        return found, list(unknown)

    def _attend(self) -> bool:
        """Replace the involutions that are local attentions; return whether there was one."""
        self._forms = forms_of(self._graph, set(self._weights))
        found = False
        for node in list(self._graph.nodes):
            if node.target is not OPERATORS[2]:
                continue
            value, kernel, stride, padding, dilation = node.args
            centred = [step * (taps // 2) for step, taps in zip(dilation, shape_of(kernel)[2:4], strict=True)]
            odd = all(taps % 2 for taps in shape_of(kernel)[2:4])
            # half types are wider here, save those of the network's own casts, which round between its steps
            wide = node.meta["val"].dtype in (torch.float32, torch.float64)
            if not wide or not odd or list(stride) != [1, 1] or list(padding) != centred:
                continue
            for query, key in proposals(kernel, self._forms):
                region = Region(query, key, kernel, self._weights.get)
                attention = self._attention(region, (dilation[0], dilation[1])) if region.closed else None
                if attention is not None:
                    node.replace_all_uses_with(self._write_attention(attention, query, key, value, node))
                    found = True
                    break
        return found

    def _attention(self, region: Region, dilation: tuple[int, int]) -> Attention | None:
        structure = ("attention", dilation, region.structure())
        if structure not in self._attentions:
            self._attentions[structure] = attention_of(region, dilation)
        return self._attentions[structure]

    def _write_attention(self, found: Attention, query: Node, key: Node, value: Node, like: Node) -> Node:
        with self._graph.inserting_before(like):
            write = _GraphWriter(self._module, like)
            dtype = like.meta["val"].dtype
            bias, embedding = (
                None if x is None else write.constant(torch.from_numpy(x).to(dtype).numpy())
                for x in (found.bias, found.embedding)
            )
            return write(
                *(_LOCAL_ATTENTION, query, key, value, bias, embedding, found.num_heads),
                *(list(found.kernel_size), list(found.dilation), found.scale, found.border),
            )

    def _has_windows(self, result: Node) -> bool:
        """Return whether windows are taken on the way from what `result` is made of."""
        form = self._forms[result]
        assert isinstance(form, Product)
        roots = {path[0] for path in form.paths}
        return any(node.target in WINDOWS for node in between(result, roots))

    def _last_step(self, result: Node) -> Node:
        """Return what multiplies or adds last on the way to `result`, which may be another module's view of it."""
        form = self._forms[result]
        assert isinstance(form, Product)
        return form.path[0]

    def _is_result(self, node: Node) -> bool:
        """Return whether products end at `node`."""
        if not node.users or not isinstance(self._forms.get(node), Product):
            return False
        users = list(node.users)
        return len(users) != 1 or not isinstance(self._forms.get(users[0]), Product)

    def _replace(self, result: Node, seen: set[Node]) -> bool:
        """Replace the region that ends at `result`, else what it is made of; return whether any was."""
        waiting = [result]
        found = False
        while waiting:
            node = waiting.pop()
            if node in seen or not isinstance(self._forms.get(node), Product):
                continue
            seen.add(node)
            out = self._involution(node)
            if out is None:
                waiting += node.all_input_nodes
            else:
                node.replace_all_uses_with(out)
                found = True
        return found

    def _involution(self, result: Node) -> Node | None:
        """Write the involution that `result` is, and return its result; None where it is none."""
        form = self._forms[result]
        assert isinstance(form, Product)
        # each may be the kernel of windows that the other makes: first as it is written
        orders = sorted((form.paths, form.paths[::-1]), key=lambda paths: not _makes_windows(paths[0]))
        for x_path, kernel_path in orders:
            for x, kernel, channels_last in self._pairs(x_path, kernel_path, result):
                region = Region(x, kernel, result, self._weights.get, channels_last)
                if not region.closed or not _sums(region):
                    continue
                replacement = self._recognised(region)
                if replacement is not None and not (_apart(replacement.wiring) and _is_windows(x)):
                    return self._write(replacement, region)
        return None

    def _pairs(self, x_path: Path, kernel_path: Path, result: Node) -> Iterator[tuple[Node, Node, bool]]:
        """Yield what may be x, the kernel, and whether x has its channels last.

        Windows lie inside of x, so what is padded further on comes last; else what is made first comes first.
        """
        total = math.prod(shape_of(result))
        padded = {node: sum(later.target is PAD for later in x_path[i + 1 :]) for i, node in enumerate(x_path)}
        for channels_last, x in itertools.product((False, True), sorted(x_path, key=padded.__getitem__)):
            shape = shape_of(x)
            if len(shape) - 2 not in OPERATORS or x in kernel_path:
                continue
            channels = shape[-1] if channels_last else shape[1]
            if not math.prod(shape) or not total or total % (shape[0] * channels):
                continue
            windows, sizes = total // channels, set()
            for kernel in kernel_path:
                size = math.prod(shape_of(kernel))
                # of kernels of one size the first: what follows only moves it
                if kernel not in x_path and size and size % windows == 0 and size not in sizes:
                    sizes.add(size)
                    yield x, kernel, channels_last

    def _recognised(self, region: Region) -> Replacement | None:
        """Return what `_recognised` does, at once where a region of the same structure was asked about before."""
        inner, padding = _without_padding(region)
        structure = (region.structure(), shape_of(inner), tuple(padding))
        if structure not in self._known:
            self._known[structure] = _recognised(region)
        return self._known[structure]

    def _write(self, replacement: Replacement, region: Region) -> Node:
        x, kernel, result = region.x, region.kernel, region.result
        with self._graph.inserting_before(result):
            write = _GraphWriter(self._module, self._last_step(result))
            span = kernel if replacement.rows is not None and _is_span(kernel, self._forms, region) else None
            if span is not None:
                kernel = _made_to_order(write, span, replacement)
            x = _without_padding(region)[0]
            if region.channels_last:
                rank = len(shape_of(x))
                x = write(_ATEN.permute.default, x, [0, rank - 1, *range(1, rank - 1)])
            return replacement(write, x, kernel, span is not None)


def _recognised(region: Region) -> Replacement | None:
    region.reduce_batch()
    if not region.fits and not region.reduce_size():
        return None
    inner, padding = _without_padding(region)
    full, x_shape, kernel_shape = region.x_shape(inner), region.evaluated(region.x), region.resized(region.kernel)
    try:
        wiring = probe(region, x_shape, kernel_shape)
        tried = Replacement(wiring, region.evaluated(inner), region.resized(region.result), padding)
        cut = [width for before, behind in reversed(padding) for width in (-before, -behind)]

        def twin(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
            return tried(_Evaluator(), torch.nn.functional.pad(x, cut), kernel)

        # zeros that were padded are zeros
        def padded(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
            back = [-width for width in cut]
            return region(torch.nn.functional.pad(torch.nn.functional.pad(x, cut), back), kernel)

        if not equal(padded, twin, x_shape, kernel_shape):
            return None
        if any(region.removed):
            return tried.enlarged(full, shape_of(region.result), region.removed)
        return Replacement(wiring, full, shape_of(region.result), padding)
    except (NotAnInvolution, RuntimeError):
        return None


def _makes_windows(path: Path) -> bool:
    return any(node.target in WINDOWS or node.target is PAD or node.meta.get("one_hot") for node in path)


def _apart(wiring: Wiring) -> bool:
    """Return whether no windows overlap."""
    return all(
        taps == 1 or out == 1 or stride > dilation * (taps - 1)
        for taps, out, stride, dilation in zip(
            wiring.kernel_size, wiring.out_size, wiring.stride, wiring.dilation, strict=True
        )
    )


def _is_windows(x: Node) -> bool:
    """Return whether x is itself made of windows, perhaps repeated: sums over these are no windows of theirs."""
    while x.target not in WINDOWS:
        if len(x.all_input_nodes) != 1:
            return False
        (x,) = x.all_input_nodes
    return True


def _without_padding(region: Region) -> tuple[Node, list[tuple[int, int]]]:
    """Return what x is before zeros are padded along its spatial axes, and how many along each."""
    x = region.x
    spatial = len(shape_of(x)) - 2
    if x.target is PAD and not region.channels_last and x.args[0].op != "get_attr":
        widths, value = list(x.args[1]), x.args[2] if len(x.args) > 2 else 0
        widths += [0] * (2 * spatial - len(widths))
        if value == 0 and not any(widths[2 * spatial :]) and min(widths) >= 0:
            return x.args[0], list(zip(widths[: 2 * spatial : 2], widths[1 : 2 * spatial : 2], strict=True))[::-1]
    return x, [(0, 0)] * spatial


def _sums(region: Region) -> bool:
    """Return whether products are summed in it: what only multiplies is no involution."""
    return any(
        node.target in SUMS
        or node.target in ADDITIONS
        or (node.target in PRODUCTS and node.target is not _ATEN.mul.Tensor)
        for node in region.nodes
    )


def _is_span(kernel: Node, forms: dict[Node, Form], region: Region) -> bool:
    """Return whether `kernel` is a convolution whose output channels may be made in another order."""
    if kernel.target is not CONVOLUTION or any(user not in region.nodes for user in kernel.users):
        return False
    _, weight, bias, *_, transposed, _, groups = kernel.args
    weights = [node for node in (weight, bias) if node is not None]
    return not transposed and groups == 1 and all(forms[node] == Fixed() for node in weights)


def _made_to_order(write: _GraphWriter, span: Node, replacement: Replacement) -> Node:
    """Write the convolution `span` with its output channels in order and scaled."""
    x, weight, bias, *geometry = span.args
    rows = replacement.rows
    assert rows is not None
    if replacement.scale == 1 and np.array_equal(rows, np.arange(len(rows))):
        return span

    def ordered(values: Node | None) -> Node | None:
        if values is None:
            return None
        chosen = write(_ATEN.index_select.default, values, 0, write.constant(rows))
        return write(_ATEN.mul.Tensor, chosen, replacement.scale) if replacement.scale != 1 else chosen

    return write(CONVOLUTION, x, ordered(weight), ordered(bias), *geometry)


class _Evaluator:
    """Computes at once, in float64."""

    def __call__(self, operator: Any, *arguments: Any) -> torch.Tensor:
        return operator(*arguments)

    def reshape(self, tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        return tensor.reshape(tuple(shape))

    def constant(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values)


class _GraphWriter:
    """Writes into a graph, where it is being inserted."""

    def __init__(self, module: fx.GraphModule, like: Node) -> None:
        self._module, self._like = module, like

    def __call__(self, operator: Any, *arguments: Any) -> Node:
        return call(self._module.graph, operator, arguments, self._like)

    def reshape(self, tensor: Node, shape: Sequence[int]) -> Node:
        if shape_of(tensor) == tuple(shape):
            return tensor
        if not tensor.meta["val"].is_contiguous():
            contiguous = {"memory_format": torch.contiguous_format}
            tensor = call(self._module.graph, _ATEN.clone.default, (tensor,), self._like, contiguous)
        return self(_ATEN.view.default, tensor, list(shape))

    def constant(self, values: np.ndarray) -> Node:
        names = (f"recognised_order_{number}" for number in itertools.count())
        name = next(name for name in names if not hasattr(self._module, name))
        self._module.register_buffer(name, torch.from_numpy(values.copy()))
        node = self._module.graph.get_attr(name)
        mode = torch._guards.detect_fake_mode([self._like.meta["val"]])
        assert mode is not None
        node.meta["val"] = mode.from_tensor(getattr(self._module, name), static_shapes=True)
        return node
