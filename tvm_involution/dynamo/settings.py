# SPDX-License-Identifier: Apache-2.0
"""The options of `torch.compile(..., backend="tvm_involution", options={...})`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..library_cache import cache_folder
from ..runtime.metadata import DTYPES


@dataclass(frozen=True)
class Settings:
    """What may be asked for."""

    dtype: str | None = None
    """what the network computes in: `float32`, `float16` or `bfloat16`; its own type by default. Inputs and outputs
    keep theirs"""
    target: str | None = None
    """as `compile` takes it; by default this CPU (`llvm`) or GPU (`cuda`), where the inputs are"""
    tuning_logs: str | None = None
    """folder of tuning logs; by default the user's own, then the shipped ones"""
    cache: str | None = None
    """folder of the libraries; by default `$XDG_CACHE_HOME/tvm-involution/torch_compile`"""

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Settings:
        """Return what `options` say.

        Raises:
            UserError: unknown options, or values that are no names or paths.
        """
        known = [field.name for field in fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise UserError(f"unknown option {name!r}; expected one of {', '.join(known)}")
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise UserError(f"option {name!r} must be a string, got {type(value).__name__}")
        given = {name: None if value is None else os.fspath(value) for name, value in options.items()}
        settings = cls(**given)
        if settings.dtype not in (None, *DTYPES):
            raise UserError(f"unknown dtype {settings.dtype!r}; expected one of {', '.join(DTYPES)}")
        return settings

    @property
    def cache_folder(self) -> Path:
        """Where the libraries are kept."""
        if self.cache is not None:
            return Path(self.cache)
        return cache_folder("torch_compile")
