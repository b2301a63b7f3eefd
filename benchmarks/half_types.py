# SPDX-License-Identifier: Apache-2.0
"""How far half types are from float32 on real activations: docs/gpu.md, "Half types".

    python benchmarks/half_types.py [--crops 40]

The trained `rednet_photos` on held-out crops of photographs (scikit-image's and scikit-learn's), compiled for this CPU:
the graph is that of GPUs, half types enter at the same places, and on CPUs with AVX512_BF16 the generated kernel is
rounded, too. The reference is the PyTorch module in float64.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from markdown_rows import print_header, print_row

import tvm_involution as ti
from tvm_involution.frontend.network import resolve_network
from tvm_involution.runtime.arrays import numpy_dtype

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from small_datasets import held_out_photos

NETWORK = "rednet_photos"


def main() -> None:
    """Print a row a type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=40, help="of each of ten photographs")
    split = held_out_photos(crops=parser.parse_args().crops)
    module = resolve_network(NETWORK).module
    assert module is not None
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(split.images).double()).numpy()
    print_header(["type", "error of the logits", "largest error of a crop", "same answer", "right"])
    for dtype in ("float32", "float16", "bfloat16"):
        logits = run(split.images.astype(numpy_dtype(dtype)), dtype)
        errors = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
        cells = [
            dtype,
            f"{np.linalg.norm(logits - expected) / np.linalg.norm(expected):.1e}",
            f"{errors.max():.1e}",
            f"{(logits.argmax(1) == expected.argmax(1)).mean():.1%}",
            f"{(logits.argmax(1) == split.labels).mean():.1%}",
        ]
        print_row(cells)


def run(images: np.ndarray, dtype: str) -> np.ndarray:
    """Return the logits (N, classes) float64 of the network compiled in `dtype`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.so")
        ti.compile(NETWORK, batch=8, dtype=dtype).save(path)
        return np.asarray(ti.load(path)(images)).astype(np.float64)


if __name__ == "__main__":
    main()
