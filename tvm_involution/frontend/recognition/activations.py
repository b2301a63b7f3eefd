# SPDX-License-Identifier: Apache-2.0
"""Activations of what was repeated, brought before the repetition: a kernel of G groups stays one of G groups."""

from __future__ import annotations

import math

import torch
from torch import fx

from .forms import Node, shape_of
from .operators import ELEMENTWISE, REPETITIONS
from .windows import call

# along one axis, whatever the order of the elements there
_ALONG = {torch.ops.aten._softmax.default, torch.ops.aten._log_softmax.default}
_LARGEST = 1 << 27


def activate_before_repetition(graph: fx.Graph) -> None:
    """Compute each elementwise step and softmax on the fewest elements that its operand was repeated from."""
    for node in list(graph.nodes):
        if node.target not in ELEMENTWISE | _ALONG or len(node.all_input_nodes) != 1:
            continue
        chain = [node.args[0]]
        while chain[-1].target in REPETITIONS:
            chain.append(chain[-1].args[0])
        sizes = [math.prod(shape_of(tensor)) for tensor in chain]
        fewest = sizes.index(min(sizes))
        if fewest == 0:
            continue
        arguments = list(node.args[1:])
        if node.target in _ALONG:
            axis = _axis_before(chain[: fewest + 1], arguments[0])
            if axis is None:
                continue
            arguments[0] = axis
        with graph.inserting_before(node):
            moved = call(graph, node.target, (chain[fewest], *arguments), node, dict(node.kwargs))
            for step in reversed(chain[:fewest]):
                moved = call(graph, step.target, (moved, *step.args[1:]), step, dict(step.kwargs))
        node.replace_all_uses_with(moved)


def _axis_before(chain: list[Node], axis: int) -> int | None:
    """Return the axis of what `chain[0]` was repeated from, `chain[-1]`, whose lines are those of its `axis`, if any.

    Every line along the one must hold every element of a line along the other once.
    """
    repeated, source = shape_of(chain[0]), shape_of(chain[-1])
    if math.prod(repeated) > _LARGEST:
        return None
    places = torch.arange(math.prod(source), dtype=torch.int32).view(source)
    for step in reversed(chain[:-1]):
        places = step.target(places, *step.args[1:], **step.kwargs)
    lines = places.movedim(axis, -1).reshape(-1, repeated[axis])
    for candidate, size in enumerate(source):
        if size != repeated[axis]:
            continue
        behind = math.prod(source[candidate + 1 :])
        numbers = lines // (behind * size) * behind + lines % behind
        on_line = (lines // behind % size).sort(1).values
        if bool((numbers == numbers[:, :1]).all()) and bool((on_line == torch.arange(size)).all()):
            return candidate
    return None
