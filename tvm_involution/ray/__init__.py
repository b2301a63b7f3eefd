# SPDX-License-Identifier: Apache-2.0
"""Libraries on a Ray cluster: `Predictor` for Ray Data's `map_batches`, and what `--ray` does."""

from .predictor import Predictor

__all__ = ["Predictor"]
