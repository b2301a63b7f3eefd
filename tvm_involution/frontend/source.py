# SPDX-License-Identifier: Apache-2.0
"""The user's line that called an operator, which `torch.export` keeps at every node."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

# file, line and code of each frame of a node's stack_trace
_FRAME = re.compile(r'File "(.*?)", line (\d+), in .*\n\s*(.*)')
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def source_line(node: fx.Node) -> str:
    """Return ` (file:line: code)`, outside of torch and this package where there is such a line; else nothing."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for library in _LIBRARIES:
        frames = [frame for frame in frames if not frame[0].startswith(library)] or frames
    return " ({}:{}: {})".format(*frames[-1]) if frames else ""


def module_path(node: fx.Node) -> str:
    """Return where the module that called an operator stands, `layer1.0.conv2`; "" for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else ""
