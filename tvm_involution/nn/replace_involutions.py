# SPDX-License-Identifier: Apache-2.0
"""Make the involutions that somebody wrote in a module run by this package's operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..arguments import checked
from ..errors import UserError
from .plain_tensors import check_plain


@dataclass(frozen=True)
class Found:
    """An involution in a module's own code."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __str__(self) -> str:
        sizes = ("x".join(map(str, v)) for v in (self.kernel_size, self.stride, self.padding, self.dilation))
        words = zip(("kernel", "stride", "padding", "dilation"), sizes, strict=True)
        return f"involution{len(self.stride)}d, {', '.join(' '.join(pair) for pair in words)}, groups {self.groups}"


@dataclass(frozen=True)
class Replacements:
    """What `replace_involutions` did; as text a line each."""

    replaced: dict[str, tuple[Found, ...]]
    """name of a module in the whole -> the involutions of its own code, which are the operator now"""
    left: tuple[str, ...]
    """products with windows that are no involutions, and modules that cannot be traced, with why"""
    error: float
    """the relative norm of the difference between the outputs before and after, the largest of them"""

    def __str__(self) -> str:
        lines = [f"{name or '(the module itself)'}: {one}" for name, found in self.replaced.items() for one in found]
        return "\n".join([*lines, *(f"left: {line}" for line in self.left), f"outputs differ by {self.error:.1e}"])


@checked
def replace_involutions(module: nn.Module, example: torch.Tensor | Sequence[Any] | None = None) -> Replacements:
    """Put `involution1d` to `3d` in the place of every involution that is written out in a module's code.

    They are found by what they compute, as `compile` finds them. The modules stay, with their parameters, names and
    hooks, and go on training: only what lies between the calls of their children is computed by the operator, forward
    and backward. Call it last, when the module has its children. Arguments of another kind (sizes, dtypes, autocast)
    than the example's are looked into when they first come, while the module's own code serves; what is found is
    compared with that before it is used.

    Args:
        module: changed in place.
        example: what it is called with, a tensor or several in a tuple; a picture (1, 3, 224, 224) by default.

    Returns:
        What was replaced, by the modules' names; what takes windows and was not; how far the outputs are apart.
        `print` it.

    Raises:
        UserError: the module cannot be called with the example, or computes something else afterwards, which is then
            taken back.
    """
    for number, tensor in enumerate(leaf for leaf in tree_leaves(example) if isinstance(leaf, torch.Tensor)):
        check_plain("replace_involutions", **{f"example {number}": tensor})
        if tensor.is_meta:
            raise UserError(
                "replace_involutions: example is on the device meta and holds no numbers; give one that does"
            )
    # the importer, which stands above this folder, and which nobody else needs here
    from ..frontend.replace_involutions import replace_involutions as replace

    return replace(module, example)
