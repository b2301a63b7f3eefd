# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution targets`."""

from __future__ import annotations

from dataclasses import asdict

import click

from .command import Command
from .words import print_json, print_table


@click.command("targets", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets_command(as_json: bool) -> None:
    """List targets: what --target takes, what is on this machine, what is tuned for which networks.

    \b
    Examples:
      tvm-involution targets
      tvm-involution compile rednet50 --target nvidia/nvidia-h100 -o rednet50-h100.so
    """
    from ..known_targets import list_targets

    infos = list_targets()
    if as_json:
        print_json([asdict(info) for info in infos])
        return
    rows = [
        [info.name, info.description, "yes" if info.present else "no", ", ".join(info.tuned) or "-"] for info in infos
    ]
    print_table("Targets (and any other tag or JSON of TVM)", ["target", "what", "here", "tuned for"], rows)
