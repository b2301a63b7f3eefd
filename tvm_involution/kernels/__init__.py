# SPDX-License-Identifier: Apache-2.0
"""Kernels of single operators for training: compiled for their shapes, in the background, and kept."""
