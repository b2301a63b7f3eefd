# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution models`."""

from __future__ import annotations

import click

from ..zoo import list_models
from .command import Command
from .words import print_json, print_table


@click.command("models", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_command(as_json: bool) -> None:
    """List the zoo: name, task, parameters, operations, published accuracy.

    \b
    Examples:
      tvm-involution models
      tvm-involution models --json
    """
    specs = list_models()
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "task": spec.task,
                    "description": spec.description,
                    "image_size": list(spec.image_size),
                    "weights": str(spec.weights_file) if spec.weights_file else None,
                    "published": spec.published,
                }
                for spec in specs
            ]
        )
        return
    rows = [
        [
            spec.name,
            spec.task,
            _figure(spec.published, "parameters_m"),
            _figure(spec.published, "flops_g"),
            _accuracy(spec.published),
            "shipped" if spec.weights_file else "--checkpoint",
            spec.description,
        ]
        for spec in specs
    ]
    columns = ["name", "task", "parameters (M)", "FLOPs (G)", "accuracy (%)", "weights", "description"]
    print_table("The model zoo, with published figures", columns, rows)


# key of `published` -> what people call it
_ACCURACIES = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU"}


def _accuracy(published: dict[str, object]) -> str:
    return ", ".join(f"{name} {published[key]}" for key, name in _ACCURACIES.items() if key in published) or "-"


def _figure(published: dict[str, object], key: str) -> str:
    return str(published.get(key, "-"))
