# SPDX-License-Identifier: Apache-2.0
"""The graph: operators of ours and the pipeline of passes."""
