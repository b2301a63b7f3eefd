# SPDX-License-Identifier: Apache-2.0
"""The CPUs that are really there, and one pool of threads on them.

TVM's own pool takes half of the visible CPUs, because it assumes hyper-threads, pins its workers to the first of them
and lets them spin; and every thread that runs a network gets such a pool. Here one executor thread runs all networks
of the process, with one worker a physical core, free to move between the allowed CPUs, which yields a thousand times,
about as long as the gaps between kernels, before it sleeps. So two libraries don't fight, the caller's own threads
are left alone, and a busy neighbour costs its share of the cores: RedNet-50 on two cores takes 30 ms alone (34 where
workers sleep at once) and 60 beside one busy process, where a pinned pool that spins as long as TVM's takes 328.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from .ffi import tvm_ffi

_T = TypeVar("_T")
# threading::ThreadGroup::AffinityMode of TVM's runtime
_SHARE_ALL_CORES = -3
_SYSFS = Path("/sys")


def physical_cores() -> int:
    """Return how many physical cores this process may use: its affinity, without hyper-threads, within its quota."""
    return len(_one_cpu_per_core())


def thread_count() -> int:
    """Return the number of threads to run on: `TVM_NUM_THREADS` where set, else `physical_cores()`."""
    wanted = os.environ.get("TVM_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else physical_cores()


def run_on_pool(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function` in the executor thread and return its result."""
    return _executor().submit(function, *arguments).result()


@lru_cache(maxsize=1)
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="tvm-involution", initializer=_configure)


# a forked child has no executor thread, only this memory of one
os.register_at_fork(after_in_child=_executor.cache_clear)


def _configure() -> None:
    """Make this thread's TVM pool; runs once, in the executor thread."""
    # read by the pool's workers when they start; the user's own setting wins
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")
    count = thread_count()
    allowed = sorted(os.sched_getaffinity(0))
    # the runtime makes as many workers as CPUs are named, and uses `count` of them
    names = [str(allowed[i % len(allowed)]) for i in range(max(count, len(allowed)))]
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, names)


def _one_cpu_per_core() -> list[int]:
    """Return one CPU of every physical core in the affinity mask, at most as many as the cgroup's quota pays for."""
    cores: dict[tuple[str, str], int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        topology = _SYSFS / f"devices/system/cpu/cpu{cpu}/topology"
        try:
            key = ((topology / "physical_package_id").read_text(), (topology / "core_id").read_text())
        except OSError:
            key = ("", str(cpu))
        cores.setdefault(key, cpu)
    return sorted(cores.values())[: _quota()]


def _quota() -> int | None:
    try:
        quota, period = (_SYSFS / "fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
