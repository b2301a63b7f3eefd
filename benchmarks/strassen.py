# SPDX-License-Identifier: Apache-2.0
"""1x1 convolutions of RedNet-50 on this CPU: the plain product beside a step of Strassen's algorithm.

    python benchmarks/strassen.py

Both with the defaults of their schedule rules, with bias and ReLU, and the residual where the network has one; kernels
alone, in turns, their arrays in the cache. GFLOP/s count the operations of the plain product for both. Nothing else may
run on the machine.
"""

from __future__ import annotations

import numpy as np
from alone import Kernel, print_table
from tvm import te, topi

from tvm_involution.te import conv2d_packed, conv2d_strassen, pack_strassen_weight, pack_weight

# pixels a side, input channels, output channels, stride, residual
LAYERS = [
    (14, 1024, 256, 1, False),
    (14, 256, 1024, 1, True),
    (28, 512, 128, 1, False),
    (28, 128, 512, 1, True),
    (28, 512, 256, 1, False),
    (28, 512, 1024, 2, True),
    (14, 1024, 512, 1, False),
    (56, 256, 128, 1, False),
    (56, 256, 512, 2, True),
    (56, 256, 64, 1, False),
    (56, 64, 256, 1, True),
]
_LANES = 32


def convolution(layer: tuple[int, int, int, int, bool], strassen: bool) -> Kernel:
    """Return a layer with its numbers, built in one way."""
    side, inputs, outputs, stride, residual = layer
    rng, out = np.random.default_rng(0), (side - 1) // stride + 1
    x = rng.standard_normal((1, side, side, inputs), np.float32)
    weight = rng.standard_normal((outputs, inputs, 1, 1), np.float32) / np.sqrt(np.float32(inputs))
    packed = pack_strassen_weight(weight, _LANES) if strassen else pack_weight(weight, _LANES)
    added = [rng.standard_normal((1, 1, 1, outputs), np.float32)]
    if residual:
        added.append(rng.standard_normal((1, out, out, outputs), np.float32))

    def expression(x: te.Tensor, packed: te.Tensor, *terms: te.Tensor) -> te.Tensor:
        strides = (stride, stride)
        result = conv2d_strassen(x, packed, strides) if strassen else conv2d_packed(x, packed, outputs, strides)
        for term in terms:
            result = topi.add(result, term)
        return topi.nn.relu(result)

    exact = x[:, ::stride, ::stride].astype(np.float64) @ weight[:, :, 0, 0].T.astype(np.float64)
    return Kernel([x, packed, *added], expression, np.maximum(exact + sum(added), 0), 2 * out * out * inputs * outputs)


def main() -> None:
    """Print a table."""
    rows = (
        (f"{side}x{side}, {inputs} to {outputs}, {stride}", [convolution(layer, way) for way in (False, True)])
        for layer in LAYERS
        for side, inputs, outputs, stride, _ in [layer]
    )
    print_table("pixels, channels, stride", ["plain", "Strassen"], rows)


if __name__ == "__main__":
    main()
