# SPDX-License-Identifier: Apache-2.0
"""Train the small RedNets that ship with the package, in minutes on two cores.

python examples/train_small_rednet.py photos      # writes models/rednet_photos.safetensors
python examples/train_small_rednet.py digits      # writes models/rednet_digits.safetensors
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from safetensors.torch import save_file
from small_datasets import Split, digits, held_out_photos, normalize, random_crop, training_parts
from torch.nn.functional import cross_entropy

from tvm_involution.files import atomic_write
from tvm_involution.nn import build_model
from tvm_involution.resources import data_dir

BATCH = 64
# of the weights that ship
STEPS = {"photos": 600, "digits": 1000}


def photo_batches(steps: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of crops, mirrored, brightened and tinted at random.

    Crops go down to a tenth of the short side and are drawn at several sizes, fewer of the large ones, so that the
    network meets each texture at many scales: the demo shows it whole photographs at 224x224.
    """
    parts = training_parts()
    for _ in range(steps):
        size = int(rng.choice([64, 96, 128, 192]))
        count = round(BATCH * (96 / size) ** 2)
        labels = rng.integers(0, len(parts), count)
        crops = np.stack([random_crop(parts[label], size, rng, smallest=0.1) for label in labels]).astype(np.float32)
        gain, offset = rng.uniform(0.7, 1.3, (count, 1, 1, 1)), rng.uniform(-25, 25, (count, 1, 1, 1))
        crops = crops * gain * rng.uniform(0.9, 1.1, (count, 1, 1, 3)) + offset
        flipped = rng.random(count) < 0.5
        crops[flipped] = crops[flipped, :, ::-1]
        yield normalize(crops.clip(0, 255)), labels


def digit_batches(steps: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of digits, shifted by up to three pixels."""
    train, _ = digits()
    for _ in range(steps):
        chosen = rng.integers(0, len(train.labels), BATCH)
        shift = tuple(rng.integers(-3, 4, 2))
        yield np.roll(train.images[chosen], shift, (2, 3)), train.labels[chosen]


def accuracy(model: torch.nn.Module, split: Split) -> float:
    """Return the share of `split` that `model` classifies rightly."""
    with torch.no_grad():
        answers = model.eval()(torch.from_numpy(split.images)).argmax(1).numpy()
    return float((answers == split.labels).mean())


def main() -> None:
    """Train one network and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=STEPS)
    parser.add_argument("--steps", type=int, help="default: 600 for photos, 1000 for digits")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    steps = arguments.steps or STEPS[arguments.dataset]

    name = f"rednet_{arguments.dataset}"
    rng = np.random.default_rng(arguments.seed)
    torch.manual_seed(arguments.seed)
    model = build_model(name, seed=arguments.seed, pretrained=False)
    batches = {"photos": photo_batches, "digits": digit_batches}[arguments.dataset]
    held_out = held_out_photos() if arguments.dataset == "photos" else digits()[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)

    start = time.monotonic()
    for step, (images, labels) in enumerate(batches(steps, rng), 1):
        model.train()
        loss = cross_entropy(model(torch.from_numpy(np.ascontiguousarray(images))), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            seconds = time.monotonic() - start
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)

    print(f"accuracy on the held-out {len(held_out.labels)} pictures: {accuracy(model, held_out):.2%}")
    path = data_dir("models") / f"{name}.safetensors"
    with atomic_write(path) as temporary:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, temporary)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
