# SPDX-License-Identifier: Apache-2.0
"""Recognise involutions by what they compute, however they are written.

On a program of core operators every node is told what it is made of (`forms`): elements of one tensor that were moved,
or sums of products of such elements of two tensors. A node of the second kind is the result of a region between the two
(`region`). It is evaluated on numbers that show which elements meet (`probing`); where that is the wiring of an
involution, the operator with views before and behind it (`replacement`) is compared with the region on random numbers,
and takes its place if they are equal.
"""

from .recognise import recognise

__all__ = ["recognise"]
