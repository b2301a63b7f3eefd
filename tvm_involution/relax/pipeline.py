# SPDX-License-Identifier: Apache-2.0
"""The whole compilation, as one list of passes in numbered phases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax

from ..records.tuning_records import TuningRecords
from .operators import interpolation, local_attention
from .operators import involution as operator
from .operators import layouts as _layouts  # noqa: F401  (registers them)
from .operators.log_softmax import legalize_log_softmax
from .passes.apply_schedules import ApplySchedules
from .passes.capture_cuda_graphs import CaptureCudaGraphs
from .passes.centre_tensors import CentreTensors
from .passes.compute_places import ComputePlaces
from .passes.convert_dtype import ConvertDtype
from .passes.fold_batch_norm import FoldBatchNorm
from .passes.fold_views import FoldViews
from .passes.fold_weights import FoldWeights
from .passes.fuse_kernel_generation import FuseKernelGeneration
from .passes.join_added_convolutions import JoinAddedConvolutions
from .passes.keep_windowed import KeepWindowed
from .passes.mark_loops import MarkLoops
from .passes.multiply_bytes import MultiplyBytes
from .passes.order_nan import OrderNan
from .passes.pack_weights import PackWeights
from .passes.pad_channels import PadChannels
from .passes.picture_by_picture import PictureByPicture
from .passes.pool_bytes import PoolBytes
from .passes.sink_reshapes import SinkReshapes
from .passes.sink_transposes import SinkTransposes
from .passes.split_norms import SplitNorms
from .passes.split_transposed_convolution import SplitTransposedConvolution
from .passes.strassen_convolutions import StrassenConvolutions
from .passes.widen_half_types import WidenHalfTypes
from .passes.winograd_convolutions import WinogradConvolutions

Phase = tuple[str, list[tvm.transform.Pass]]


def phases(
    target: tvm.target.Target,
    dtype: str = "float32",
    records: TuningRecords | None = None,
    cuda_graph: bool = False,
    tf32: bool = False,
) -> list[Phase]:
    """Return the phases that take an imported module to one that the Relax VM's code generator accepts."""
    return [
        (
            "simplify the graph",
            [
                relax.transform.Normalize(),
                # before FoldWeights, which makes numbers of bytes; half types do not hold sums of products
                *([MultiplyBytes(target)] if dtype == "float32" else []),
                # while statistics are float32 and convolutions stand alone
                FoldBatchNorm(),
                # makes ordinary convolutions, for the passes of these below
                SplitTransposedConvolution(),
                # before ConvertDtype: half types round its results, not the way to them
                FoldWeights(),
                # behind what is computed in float32, the statistics of batch norms above all
                ConvertDtype(dtype),
                relax.transform.DecomposeOpsForInference(),
                relax.transform.CanonicalizeBindings(),
                relax.transform.DeadCodeElimination(),
            ],
        ),
        (
            "lay out channels last",
            [
                relax.transform.ConvertLayout(
                    {
                        "relax.nn.conv1d": ["NWC", "OIW"],
                        "relax.nn.conv2d": ["NHWC", "OIHW"],
                        "relax.nn.conv3d": ["NDHWC", "OIDHW"],
                        "relax.image.resize2d": ["NHWC"],
                        # TVM lowers no other layouts of these
                        "relax.nn.conv1d_transpose": ["NCW", "IOW"],
                        "relax.nn.conv2d_transpose": ["NCHW", "IOHW"],
                        "relax.nn.conv3d_transpose": ["NCDHW", "IODHW"],
                        **{name: [operator.CHANNELS_LAST[axes]] * 2 for axes, name in operator.OP_NAMES.items()},
                        local_attention.OP_NAME: ["NHWC"] * 3,
                        interpolation.OP_NAME: ["NHWC"],
                    }
                ),
                # takes away the transpositions that ConvertLayout and the program left, then those of weights
                SinkTransposes(),
                FoldViews(),
                relax.transform.CanonicalizeBindings(),
                relax.transform.DeadCodeElimination(),
            ],
        ),
        (
            "lower operators",
            [
                # wants whole operators, whose bytes it counts
                PictureByPicture(target),
                relax.transform.CanonicalizeBindings(),
                # joins what is quantized to the sums of its windows
                PoolBytes(),
                # takes span convolutions before PackWeights does
                FuseKernelGeneration(target, tf32),
                PadChannels(target),
                # the special convolutions before PackWeights, which takes all
                JoinAddedConvolutions(target, tf32),
                WinogradConvolutions(target),
                StrassenConvolutions(target),
                PackWeights(target, tf32),
                # behind the convolutions' products, whose results it reshapes later
                SinkReshapes(),
                FoldViews(),
                # before WidenHalfTypes, which would round between its steps
                SplitNorms(target),
                # behind everything that keeps its sums in float32 by itself; it widens the rest
                WidenHalfTypes(target),
                # on operators, before they become programs that TVM simplifies
                OrderNan(),
                # behind WidenHalfTypes, which knows what only moves by its name
                ComputePlaces(),
                # needs the operators that LegalizeOps takes
                relax.backend.DispatchSortScan(),
                relax.transform.LegalizeOps(
                    {"relax.nn.log_softmax": legalize_log_softmax} if target.kind.name == "llvm" else None
                ),
                relax.transform.AnnotateTIROpPattern(),
                # knows programs by the patterns that FuseOps goes by
                KeepWindowed(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
                # last: it looks at what the others made
                MarkLoops(),
            ],
        ),
        ("schedule kernels", [ApplySchedules(target, records)]),
        (
            "plan memory",
            [
                relax.transform.RewriteDataflowReshape(),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.CallTIRRewrite(),
                relax.transform.StaticPlanBlockMemory(),
                CentreTensors(target),
                *([CaptureCudaGraphs()] if cuda_graph else []),
                relax.transform.LowerAllocTensor(),
                relax.transform.KillAfterLastUse(),
                relax.transform.LowerRuntimeBuiltin(),
                relax.transform.ComputePrimValue(),
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ],
        ),
    ]


def run(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    *,
    dtype: str = "float32",
    records: TuningRecords | None = None,
    cuda_graph: bool = False,
    debug_dump: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    until: str | None = None,
    tf32: bool = False,
) -> tvm.IRModule:
    """Run the phases over `mod`.

    Args:
        dtype: `float16` or `bfloat16` to convert a float32 network.
        records: tuning records to prefer to the rules' defaults.
        cuda_graph: launch the kernels as CUDA graphs.
        debug_dump: folder for the module's text before the first and after each phase, `N-name.py`.
        progress: told the name of each phase as it starts.
        until: name of the last phase to run; all of them by default.
        tf32: multiply float32 on tensor cores, by 10 bits of its mantissa.
    """
    _dump(mod, debug_dump, "0-import")
    with target, tvm.transform.PassContext(opt_level=3):
        for number, (name, passes) in enumerate(phases(target, dtype, records, cuda_graph, tf32), 1):
            progress(name)
            for step in passes:
                mod = step(mod)
            _dump(mod, debug_dump, f"{number}-{name.replace(' ', '-')}")
            if name == until:
                break
    return mod


def _dump(mod: tvm.IRModule, folder: Path | None, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(mod.script(show_meta=False))
