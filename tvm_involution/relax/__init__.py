# SPDX-License-Identifier: Apache-2.0
"""The graph: importing, the involution operator, the pipeline of passes, and `compile`."""
