# SPDX-License-Identifier: Apache-2.0
"""What `tvm-involution targets` lists: this machine, tags worth naming, and what has been tuned for them."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from .compute_capability import multiprocessor
from .records.folders import log_folders
from .records.manifest import read_manifest
from .schedules.gpu import mma_fragments
from .target import gpu_name, gpu_problem, host_cpu, target_key

_SHOWN_TAGS = (
    "nvidia/nvidia-t4",
    "nvidia/nvidia-a100",
    "nvidia/geforce-rtx-3090",
    "nvidia/geforce-rtx-4090",
    "nvidia/nvidia-h100",
    "nvidia/nvidia-b100",
    "nvidia/geforce-rtx-5060-ti",
    "raspberry-pi/4b-aarch64",
)


@dataclass(frozen=True)
class TargetInfo:
    """A row of `tvm-involution targets`."""

    name: str
    """what `--target` takes"""
    description: str
    present: bool
    """whether this machine can run it"""
    tuned: tuple[str, ...]
    """networks that the user's and the shipped tuning logs cover, as `name/batch/dtype`"""


def list_targets() -> list[TargetInfo]:
    """List this machine's targets, then tags worth naming.

    Raises:
        UserError: a manifest of tuning logs is damaged.
    """
    cpu, gpu = host_cpu(), gpu_name()
    own = tvm.target.Target(cpu)
    rows = [
        TargetInfo("llvm", f"this machine's CPU: {cpu['mcpu']}, {cpu['num-cores']} cores", True, _tuned(own)),
        TargetInfo("cuda", f"this machine's GPU: {gpu or f'none found: {gpu_problem()}'}", gpu is not None, ()),
    ]
    known = set(tvm.target.list_tags())
    for tag in _SHOWN_TAGS:
        if tag in known:
            target = tvm.target.Target(tag)
            rows.append(TargetInfo(tag, _describe(target), False, _tuned(target)))
    return rows


def _describe(target: tvm.target.Target) -> str:
    if target.kind.name != "cuda":
        return f"{target.kind.name} {target.attrs.get('mcpu', '')}".strip()
    architecture = str(target.attrs["arch"])
    shared = multiprocessor(architecture).shared_bytes >> 10
    products = {"float16": False, "bfloat16": False, "tf32": True}
    known = [
        name for name, tf32 in products.items() if mma_fragments(target, "float32" if tf32 else name, tf32) is not None
    ]
    return f"cuda {architecture}: {shared} KiB shared memory, tensor cores for {', '.join(known)}"


def _tuned(target: tvm.target.Target) -> tuple[str, ...]:
    manifests = (read_manifest(folder / target_key(target)) for folder in log_folders(None))
    labels = (network.label for manifest in manifests if manifest is not None for network in manifest.networks)
    return tuple(dict.fromkeys(labels))
