# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, calls into the package, words out. One subcommand a file."""

from .main import main

__all__ = ["main"]
