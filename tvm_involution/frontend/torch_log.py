# SPDX-License-Identifier: Apache-2.0
"""What torch says on standard error of programs that it cannot trace, beside the error that it raises."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.proxy_tensor",
    "torch.fx.passes.runtime_assert",
    "torch.export",
    "torch._export.non_strict_utils",
)


@contextlib.contextmanager
def no_torch_log() -> Iterator[None]:
    """Keep torch from logging where it may fail, and from warning of attributes that modules assign while they run."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was assigned during export.*")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextlib.contextmanager
def no_graph_on_failure() -> Iterator[None]:
    """Hold back what is printed on standard error, where torch prints the graph of what it cannot trace; lost then."""
    with contextlib.redirect_stderr(io.StringIO()) as held:
        yield
    sys.stderr.write(held.getvalue())
