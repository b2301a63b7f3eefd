# SPDX-License-Identifier: Apache-2.0
"""What the package can do without: modules of its extras, and how to get them."""

from __future__ import annotations

from .errors import UserError

_EXTRAS = {
    "torch": "compile",
    "safetensors": "compile",
    "xgboost": "tune",
    "psutil": "tune",
    "cloudpickle": "tune",
    "tornado": "tune",
    "matplotlib": "bench",
    "ziglang": "cross",
    "pyarrow": "parquet",
    "pycocotools": "evaluate",
    "ray": "ray",
}
"""module -> the extra in pyproject.toml that brings it"""


def missing_extra(error: ModuleNotFoundError, needed_by: str = "this command") -> UserError | None:
    """Return what to say of a module that is not installed, None where it is of no extra."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    return UserError(f'{needed_by} needs {module}: pip install "tvm-involution[{_EXTRAS[module]}]"')
