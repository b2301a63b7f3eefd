# SPDX-License-Identifier: Apache-2.0
"""`python -m tvm_involution`."""

from .cli import main

main()
