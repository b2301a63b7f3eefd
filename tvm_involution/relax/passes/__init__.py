# SPDX-License-Identifier: Apache-2.0
"""Graph passes, one a file; `..pipeline` lists them in order."""
