# SPDX-License-Identifier: Apache-2.0
"""`python -m tvm_involution`."""

import os
import sys

# `-m` puts the current folder first, where a file may be called like a module that we need
if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from .cli import main

main()
