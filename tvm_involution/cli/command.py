# SPDX-License-Identifier: Apache-2.0
"""What all subcommands hold to."""

from __future__ import annotations

import click


class Command(click.Command):
    """A subcommand that drops nothing of what was said: an option that takes one value may be given once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the line."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            takes_one = isinstance(option, click.Option) and not (option.multiple or option.count or option.is_flag)
            if takes_one and given.count(option) > 1:
                raise click.UsageError(f"Option {option.opts[-1]!r} was given more than once", ctx)
        return super().parse_args(ctx, args)
