# SPDX-License-Identifier: Apache-2.0
"""The lowering of scheduled programs: TVM's pipeline for `s_tir`, with passes of ours before and after it."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from ..target import lowering_config
from .accept_offsets import AcceptOffsets
from .branch_on_sources import BranchOnSources
from .convert_to_bfloat16 import ConvertToBfloat16
from .drop_pragmas import DropPragmas
from .keep_locals_in_registers import KeepLocalsInRegisters
from .pad_with_infinity import PadWithInfinity
from .prefetch_residuals import PrefetchResiduals
from .prefetch_weights import PrefetchWeights
from .propagate_nan import PropagateNan
from .take_vectors import KeepSelections, TakeVectors
from .vector_math import VectorMath

PIPELINE = "tvm_involution"
"""its name among TVM's pipelines"""


def build(mod: tvm.IRModule | tirx.PrimFunc, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Return the code of scheduled programs for `target`, or of a Relax module that calls them."""
    with tvm.transform.PassContext(config=lowering_config(target)):
        return tvm.compile(mod, target, relax_pipeline=None, tir_pipeline=PIPELINE)


def _pipeline() -> tuple[tvm.transform.Pass, ...]:
    lower, tvm_host, tvm_device = default_s_tir_pipeline()

    def finalize_host() -> tvm.transform.Pass:
        return tvm.transform.Sequential(
            [TakeVectors(), KeepLocalsInRegisters(), VectorMath(), ConvertToBfloat16(), tvm_host(), PropagateNan()]
        )

    def finalize_device() -> tvm.transform.Pass:
        return tvm.transform.Sequential([tvm_device(), PropagateNan()])

    prepare = [
        DropPragmas(),
        PadWithInfinity(),
        BranchOnSources(),
        PrefetchWeights(),
        PrefetchResiduals(),
        AcceptOffsets(),
        KeepSelections(),
        lower,
    ]
    return tvm.transform.Sequential(prepare), finalize_host, finalize_device


register_tir_pipeline(PIPELINE, _pipeline)
