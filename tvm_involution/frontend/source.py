# SPDX-License-Identifier: Apache-2.0
"""The user's line that called an operator, which `torch.export` keeps at every node."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

# file, line and code of each frame of a node's stack_trace
_FRAME = re.compile(r'File "(.*?)", line (\d+), in .*\n\s*(.*)')


def source_line(node: fx.Node) -> str:
    """Return ` (file:line: code)`, outside of torch where there is such a line; nothing where there is none."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    library = str(Path(torch.__file__).parent)
    users = [frame for frame in frames if not frame[0].startswith(library)] or frames
    return " ({}:{}: {})".format(*users[-1]) if users else ""
