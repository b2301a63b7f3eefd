# SPDX-License-Identifier: Apache-2.0
"""How right a library's answers are, on data sets whose answers are known."""

from .counting import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
