# SPDX-License-Identifier: Apache-2.0
"""Who can be timed: one contender a file. Adding a peer touches its file and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ...errors import UserError
from .contender import Contender
from .inductor import Inductor
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .ours import Ours
from .torch import Torch

OURS = Ours()
PEERS: tuple[Contender, ...] = (Torch(), Inductor(), OnnxRuntime(), OpenVino())


def select_peers(names: Sequence[str] | None) -> list[Contender]:
    """Return the peers called `names`, or all that are installed.

    Raises:
        UserError: an unknown name, or a peer that is not installed, with what to install.
    """
    if names is None:
        return [peer for peer in PEERS if not peer.missing_modules()]
    known = {peer.name: peer for peer in PEERS}
    chosen = []
    for name in dict.fromkeys(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown peer {name!r}: {hint}expected some of {', '.join(known)}, or none")
        peer = known[name]
        if missing := peer.missing_modules():
            raise UserError(
                f'{name} needs {", ".join(missing)}: pip install "tvm-involution[{peer.extra}]", or leave it out of '
                "--against"
            )
        chosen.append(peer)
    return chosen


__all__ = ["OURS", "PEERS", "Contender", "select_peers"]
