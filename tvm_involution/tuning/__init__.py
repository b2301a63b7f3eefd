# SPDX-License-Identifier: Apache-2.0
"""The search: tasks of a network, candidates measured here or on a fleet, the best kept as records."""
