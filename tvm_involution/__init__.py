# SPDX-License-Identifier: Apache-2.0
"""Involution networks, fast and deployable: tune for a target, compile to a shared library, run it from Python.

    import tvm_involution as ti
    ti.tune("rednet50", target="llvm", minutes=30)
    ti.compile("rednet50", target="llvm", checkpoint="rednet50.pth").save("rednet50.so")
    net = ti.load("rednet50.so")
    logits = net(x)

Importing the package loads neither torch nor the compiler; each name below brings what it needs when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .extras import missing_extra

if TYPE_CHECKING:
    from . import nn, te
    from .compiler import CompiledLibrary, compile
    from .evaluation import evaluate
    from .runtime import CompiledNetwork, load
    from .runtime.predictor import Predictor
    from .tuning.tuner import tune
    from .zoo import list_models

__version__ = "0.2.0"
__all__ = [
    "CompiledLibrary",
    "CompiledNetwork",
    "Predictor",
    "UserError",
    "compile",
    "evaluate",
    "list_models",
    "load",
    "nn",
    "te",
    "tune",
]

# name -> (module, attribute); a module itself where the attribute is None
_LAZY: dict[str, tuple[str, str | None]] = {
    "CompiledLibrary": (".compiler", "CompiledLibrary"),
    "CompiledNetwork": (".runtime", "CompiledNetwork"),
    "Predictor": (".runtime.predictor", "Predictor"),
    "compile": (".compiler", "compile"),
    "evaluate": (".evaluation", "evaluate"),
    "list_models": (".zoo", "list_models"),
    "load": (".runtime", "load"),
    "nn": (".nn", None),
    "te": (".te", None),
    "tune": (".tuning.tuner", "tune"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    try:
        module = importlib.import_module(module_name, __name__)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error, name)) is None:
            raise
        raise missing from error
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
