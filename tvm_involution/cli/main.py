# SPDX-License-Identifier: Apache-2.0
"""The command `tvm-involution` and how it ends: 0; 2 for wrong use or bad input; 128 and the signal, 130 for Ctrl-C."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from .. import __version__
from ..errors import UserError
from ..extras import missing_extra
from .bench import bench_command
from .compile import compile_command
from .config import config_command
from .evaluate import evaluate_command
from .explain import explain_command
from .inspect import inspect_command
from .interrupt import received_signal, watch_interrupts
from .logs import logs_command
from .models import models_command
from .run import run_command
from .streams import end_output, prepare_streams
from .targets import targets_command
from .tune import tune_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tvm-involution")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def tvm_involution(debug: bool) -> None:
    """Compile involution networks with Apache TVM, and run them.

    \b
    Examples:
      tvm-involution models
      tvm-involution explain rednet50
      tvm-involution compile rednet50 --target llvm -o rednet50.so --checkpoint rednet50.pth
      tvm-involution run rednet50.so --input photo.jpg
      tvm-involution inspect rednet50.so
      tvm-involution bench rednet50
    """


_EXPECTED = (UserError, click.ClickException, OSError, MemoryError)

for _command in (
    models_command,
    targets_command,
    tune_command,
    logs_command,
    explain_command,
    compile_command,
    run_command,
    evaluate_command,
    inspect_command,
    bench_command,
    config_command,
):
    tvm_involution.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # --debug is taken anywhere on the line: it is added when a command has just failed
    debug = "--debug" in words
    prepare_streams()
    with watch_interrupts():
        status = _run([word for word in words if word != "--debug"], debug)
    sys.exit(status)


def _run(words: list[str], debug: bool) -> int:
    try:
        tvm_involution.main(words, prog_name="tvm-involution", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 2
    except (Exception, KeyboardInterrupt) as error:
        if received_signal() is None and not isinstance(error, (click.Abort, KeyboardInterrupt)):
            return _fail(error, debug)
    else:
        if received_signal() is None:
            return 0
    number = signal.Signals(received_signal() or signal.SIGINT)
    word = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    click.echo(f"tvm-involution: {word}; no file is half written", err=True)
    return 128 + number


def _fail(error: Exception, debug: bool) -> int:
    """Say what went wrong and return the exit status."""
    if isinstance(error, BrokenPipeError):  # of `| head`, which has seen enough
        end_output()
        return 1
    if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error)) is not None:
        error = missing
    expected = isinstance(error, _EXPECTED)
    if debug or not expected:
        traceback.print_exception(error)
    click.echo(f"tvm-involution: {_one_line(error)}", err=True)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        end_output()
    return 2 if expected else 1


def _one_line(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        usage = f"; see `{error.ctx.command_path} --help`" if error.ctx is not None else ""
        return " ".join(error.format_message().split()).rstrip(".") + usage
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, MemoryError):
        text = f"out of memory: {text or 'no room for an array'}; take a smaller batch, picture or file"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        text = f"cannot write the standard output: {error.strerror}"  # files name themselves
    return " ".join(text.split())
