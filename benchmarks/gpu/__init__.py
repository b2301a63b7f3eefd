# SPDX-License-Identifier: Apache-2.0
"""RedNets on a GPU, in one bounded command; docs/gpu.md says how to run it and what it measures.

`driver` runs the steps of `steps/` one after another, each in a process of its own with a time limit; a step hands its
work to `workers`, so that a kernel that kills its process costs one row of the results.
"""
