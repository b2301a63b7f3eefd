# SPDX-License-Identifier: Apache-2.0
"""Operators of Relax that are ours, one a file: type, layout, legalization."""
