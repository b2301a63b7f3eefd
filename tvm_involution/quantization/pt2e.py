# SPDX-License-Identifier: Apache-2.0
"""A quantizer for torchao's PT2E, which quantizes what this package multiplies as bytes.

    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from tvm_involution.quantization.pt2e import CpuQuantizer

    prepared = prepare_pt2e(torch.export.export(module, inputs).module(), CpuQuantizer())
    ...  # run it on some pictures
    program = torch.export.export(convert_pt2e(prepared), inputs)
    library = ti.compile(program)

torchao is no dependency of this package: `pip install torchao`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

_LAYERS = frozenset({"conv2d.default", "conv2d.padding", "linear.default"})
# input channels from which products of four bytes pay; a first convolution sees three
_FEWEST_INPUTS = 8
_GROUPS = 6

_ACTIVATION = QuantizationSpec(
    torch.uint8,
    HistogramObserver.with_args(eps=2**-20),
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
)
_WEIGHT = QuantizationSpec(
    torch.int8,
    PerChannelMinMaxObserver.with_args(eps=2**-20),
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
)


class CpuQuantizer(Quantizer):
    """Quantizes 2-D convolutions without groups and linear layers, from 8 input channels.

    Weights become int8 with a scale for each output channel, what the layers read uint8; whoever else reads such a
    tensor, a residual or an involution, reads the bytes, too.
    """

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Say at each node which of its inputs become bytes."""
        tensors: dict[fx.Node, None] = {}
        for node in model.graph.nodes:
            if _is_layer(node):
                x, weight = node.args[:2]
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({x: _ACTIVATION, weight: _WEIGHT}, _annotated=True)
                tensors[x] = None
        for tensor in tensors:
            for user in tensor.users:
                if not _is_layer(user) and _computes(user):
                    annotation = user.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
                    annotation.input_qspec_map[tensor] = _ACTIVATION
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Take every model: what is not annotated stays in float32."""


def _is_layer(node: fx.Node) -> bool:
    if not _computes(node) or node.target.__name__ not in _LAYERS or len(node.args) < 2:  # type: ignore[union-attr]
        return False
    x, weight, *_ = node.args
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    shape: Any = weight.meta["val"].shape
    groups = node.args[_GROUPS] if len(node.args) > _GROUPS else node.kwargs.get("groups", 1)
    return bool(groups == 1 and shape[1] >= _FEWEST_INPUTS and x.meta["val"].dtype == torch.float32)


def _computes(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
