# SPDX-License-Identifier: Apache-2.0
"""The error a user can cause and mend."""


class UserError(ValueError):
    """Wrong use or bad input.

    The message is one line: what was wrong, what was expected, and what to do. The command line prints it
    to standard error and exits with status 2; from Python it is an ordinary `ValueError`.
    """
