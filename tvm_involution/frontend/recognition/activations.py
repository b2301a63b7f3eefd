# SPDX-License-Identifier: Apache-2.0
"""Activations of what was repeated, brought before the repetition: a kernel of G groups stays one of G groups."""

from __future__ import annotations

import math

from torch import fx

from .forms import shape_of
from .operators import ELEMENTWISE, REPETITIONS
from .windows import call


def activate_before_repetition(graph: fx.Graph) -> None:
    """Compute each elementwise step on the fewest elements that its operand was repeated from."""
    for node in list(graph.nodes):
        if node.target not in ELEMENTWISE or len(node.all_input_nodes) != 1:
            continue
        chain = [node.args[0]]
        while chain[-1].target in REPETITIONS:
            chain.append(chain[-1].args[0])
        sizes = [math.prod(shape_of(tensor)) for tensor in chain]
        fewest = sizes.index(min(sizes))
        if fewest == 0:
            continue
        with graph.inserting_before(node):
            moved = call(graph, node.target, (chain[fewest], *node.args[1:]), node, dict(node.kwargs))
            for step in reversed(chain[:fewest]):
                moved = call(graph, step.target, (moved, *step.args[1:]), step, dict(step.kwargs))
        node.replace_all_uses_with(moved)
