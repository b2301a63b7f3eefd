# SPDX-License-Identifier: Apache-2.0
"""Post-training static quantization to int8: from pictures to ranges, from ranges to a graph of bytes.

`quantize` takes a float32 module after the phase "simplify the graph", in which batch norms are in their
convolutions. Docs: docs/int8.md.
"""

from .calibration import Calibration, read_calibration
from .quantize import quantize

__all__ = ["Calibration", "quantize", "read_calibration"]
