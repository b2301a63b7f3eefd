# SPDX-License-Identifier: Apache-2.0
"""What torchao's PT2E makes of networks by our quantizer is imported as it is, in products of bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_rednet
from reference import relative_norm

import tvm_involution as ti

pytest.importorskip("torchao", reason="torchao, of the extra dev, is not installed")


def test_rednet(rng, tmp_path):
    """All layers but those with few input channels; from a file, and like torchao's own reference."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from tvm_involution.quantization.pt2e import CpuQuantizer

    net = tiny_rednet().eval()
    shown, x = (torch.from_numpy(rng.standard_normal((4, 3, 32, 32)).astype(np.float32)) for _ in range(2))
    weights = [value for name, value in net.named_parameters() if value.ndim in (2, 4)]
    prepared = prepare_pt2e(torch.export.export(net, (x,)).module(), CpuQuantizer())
    prepared(shown)
    converted = convert_pt2e(prepared)
    torch.export.save(torch.export.export(converted, (x,)), tmp_path / "net.pt2")
    ti.compile(tmp_path / "net.pt2", debug_dump=tmp_path).save(tmp_path / "net.so")
    text = (tmp_path / "1-simplify-the-graph.py").read_text()
    assert text.count('out_dtype="int32"') == sum(weight.shape[1] >= 8 for weight in weights) > 15
    with torch.no_grad():
        expected, exact = converted(x).numpy(), net(x).numpy()
    found = ti.load(tmp_path / "net.so")(x.numpy())
    # a sum that lies between two bytes may be rounded to the other
    assert relative_norm(found, expected) < 1e-2
    assert 1e-4 < relative_norm(found, exact) < 0.1
