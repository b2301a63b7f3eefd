# SPDX-License-Identifier: Apache-2.0
"""Compile a RedNet for this CPU, run it on a real photograph, show what it saw and how long it took beside PyTorch.

    python examples/demo.py --output out
    python examples/demo.py --photograph coffee

The small network (`rednet_photos`) was trained on parts of ten photographs, of which this is one
(examples/small_datasets.py). RedNet-50 is timed with random weights: its speed does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from small_datasets import PHOTOGRAPHS, load_photograph
from torch import Tensor, nn

import tvm_involution as ti
from tvm_involution.runtime.metadata import Preprocessing
from tvm_involution.runtime.preprocessing import crop_picture, picture_to_array
from tvm_involution.runtime.threads import thread_count
from tvm_involution.zoo import get_model

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE = 224
ROUNDS = 30
WARM_UP = 1.0  # seconds


class WithHeatMaps(nn.Module):
    """A RedNet that also returns, for the first involution of each stage, the sum of every pixel's K x K kernel.

    That sum is the paper's picture of what an involution attends to (section 5.4 of arXiv 2103.06255); here it is the
    mean over the layer's groups, (N, OH, OW).
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> logits and one map a stage."""
        backbone = self.classifier.backbone
        x = backbone.maxpool(backbone.stem(x))
        maps = []
        for name in backbone.stages:
            stage = getattr(backbone, name)
            inside = stage[0].relu(stage[0].bn1(stage[0].conv1(x)))
            maps.append(stage[0].conv2.generate_kernel(inside).sum((2, 3)).mean(1))
            x = stage(x)
        return (self.classifier.head(x.mean((2, 3))), *maps)


def draw(picture: Image.Image, maps: list[np.ndarray], answer: str, path: Path) -> None:
    """Write the photograph, and beside it the heat map of each stage over it."""
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(3 * (1 + len(maps)), 3.4), layout="constrained")
    axes[0].imshow(picture)
    axes[0].set_title(answer)
    for number, (axis, heat) in enumerate(zip(axes[1:], maps, strict=True), 1):
        low, high = np.percentile(heat, [2, 98])
        scaled = Image.fromarray(((heat - low) / (high - low + 1e-9)).clip(0, 1).astype(np.float32))
        axis.imshow(picture.convert("L"), cmap="gray")
        axis.imshow(np.asarray(scaled.resize(picture.size, Image.Resampling.BICUBIC)), cmap="inferno", alpha=0.6)
        axis.set_title(f"stage {number}: kernels {heat.shape[0]}x{heat.shape[1]}")
    for axis in axes:
        axis.axis("off")
    figure.suptitle("Sum of the involution kernel that each pixel generated")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bars(title: str, rows: list[tuple[str, float, str]]) -> None:
    """Print one bar a row, as long as its value is large."""
    print(f"\n{title}")
    width = max(len(name) for name, _, _ in rows)
    longest = max(value for _, value, _ in rows)
    for name, value, text in rows:
        print(f"  {name:<{width}} {text:>10}  {'█' * round(40 * value / longest)}")


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, after a warm-up: compiling leaves clocks and threads unsettled."""
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_UP:
        call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def classify(name: str, output: Path) -> None:
    """Compile the small trained network, run it on the photograph, print the classes and write the picture."""
    spec = get_model("rednet_photos")
    print(f"compiling {spec.name} at {SIZE}x{SIZE} for this CPU …", flush=True)
    library = ti.compile(WithHeatMaps(ti.nn.build_model(spec)), image_size=(SIZE, SIZE))
    library.save(output / "rednet_photos.so")
    network = ti.load(output / "rednet_photos.so")

    means, deviations = (tuple(spec.preprocessing[key]) for key in ("mean", "std"))
    preprocessing = Preprocessing(SIZE, SIZE, means, deviations)
    picture = crop_picture(load_photograph(name), preprocessing, (SIZE, SIZE))
    logits, *maps = network(picture_to_array(picture, preprocessing))
    probabilities = np.exp(logits[0] - logits[0].max())
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities)[:5]
    bars(
        f"the photograph {PHOTOGRAPHS[name].name} is",
        [(spec.classes[i], float(probabilities[i]), f"{probabilities[i]:.2%}") for i in best],
    )
    path = output / "demo.png"
    draw(picture, [heat[0] for heat in maps], f"{spec.classes[best[0]]} {probabilities[best[0]]:.0%}", path)
    print(f"\nwrote {path}: the photograph with the involution kernels' heat maps")


def compare_speed(output: Path) -> None:
    """Compile RedNet-50, check it against PyTorch, and time both on the same input and threads."""
    print(f"\ncompiling rednet50 at {SIZE}x{SIZE} for this CPU …", flush=True)
    library = ti.compile("rednet50")
    library.save(output / "rednet50.so")
    kernels = library.metadata.kernels
    print(f"{kernels.total} kernels, {kernels.record} of them from tuning records")
    network = ti.load(output / "rednet50.so")
    module = ti.nn.build_model("rednet50")
    resnet = ti.nn.build_model("resnet50")
    torch.set_num_threads(thread_count())
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)
    tensor = torch.from_numpy(x)
    with torch.no_grad():
        # ours first: PyTorch's own threads go on spinning for a while after each call and would take our cores
        ours = milliseconds(lambda: network(x))
        theirs = milliseconds(lambda: module(tensor))
        convolution = milliseconds(lambda: resnet(tensor))
        expected = module(tensor).numpy()
    error = np.linalg.norm(network(x) - expected) / np.linalg.norm(expected)
    bars(
        f"milliseconds a picture, batch 1, float32, {thread_count()} threads, median of {ROUNDS}",
        [
            ("RedNet-50, compiled here", ours, f"{ours:.1f}"),
            (f"RedNet-50, PyTorch {torch.__version__} eager", theirs, f"{theirs:.1f}"),
            (f"ResNet-50, PyTorch {torch.__version__} eager", convolution, f"{convolution:.1f}"),
        ],
    )
    print(f"\ncompiled RedNet-50 differs from PyTorch's by {error:.1e} (relative norm)")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for libraries and picture")
    parser.add_argument("--photograph", choices=PHOTOGRAPHS, default="cat")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    classify(arguments.photograph, arguments.output)
    compare_speed(arguments.output)


if __name__ == "__main__":
    main()
