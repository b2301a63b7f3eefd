# SPDX-License-Identifier: Apache-2.0
"""What all subcommands hold to."""

from __future__ import annotations

from pathlib import Path

import click


class Command(click.Command):
    """A subcommand that drops nothing of what was said: an option for one value is given once, and none is empty."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the line."""
        empty = "" in args
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            takes_one = isinstance(option, click.Option) and not (option.multiple or option.count or option.is_flag)
            if takes_one and given.count(option) > 1:
                raise click.UsageError(f"Option {option.opts[-1]!r} was given more than once", ctx)
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            if ctx.params.get(parameter.name or "") in ("", Path("")) and empty:
                raise click.BadParameter("it is empty", ctx, parameter)
        return rest
