# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a network of the zoo to your own classes, from pictures in folders; compile it, run it, evaluate it.

    python examples/finetune.py PHOTOS --output out                # PHOTOS/cat/*.jpg, PHOTOS/dog/*.jpg ...
    python examples/finetune.py PHOTOS --checkpoint rednet26.pth   # from trained weights, which it needs to be good
    python examples/finetune.py --make-photos photos               # ten classes, from pictures that packages carry

Every fifth picture of a class is held out, under OUT/held_out. It leaves OUT/finetuned.pth and OUT/finetuned.so, with
code, weights and the classes' names, about which it says how right it is, and whether PyTorch answers the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import tvm_involution as ti
from tvm_involution.nn import build_model, load_checkpoint
from tvm_involution.runtime.find_pictures import find_pictures
from tvm_involution.runtime.metadata import preprocessing_from
from tvm_involution.runtime.preprocessing import crop_picture, picture_to_array, read_picture
from tvm_involution.zoo import get_model, read_model


def make_photos(folder: Path, count: int = 60) -> None:
    """Write `count` crops of each of ten photographs as PNG, in a folder for each."""
    from small_datasets import PHOTOGRAPHS, load_photograph, random_crop

    rng = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(random_crop(load_photograph(name), 160, rng)).save(folder / name / f"{number}.png")


def split(folder: Path, held_out: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the classes, and the pictures to train on with their classes; link the others under `held_out`."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    training = []
    for label, name in enumerate(classes):
        (held_out / name).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(find_pictures([folder / name])):
            if number % 5 < 4:
                training.append((file, label))
            elif not (link := held_out / name / Path(file).name).exists():
                os.symlink(Path(file).resolve(), link)
    return classes, training


def batches(training: list[tuple[str, int]], preprocessing, size: tuple[int, int], batch: int, rng):
    """Yield batches of one epoch, mirrored at random; prepared by the functions that the library will be given."""
    for start in range(0, len(order := rng.permutation(len(training))), batch):
        arrays, labels = [], []
        for file, label in (training[i] for i in order[start : start + batch]):
            picture = crop_picture(read_picture(file), preprocessing, size)
            if rng.random() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            arrays.append(picture_to_array(picture, preprocessing))
            labels.append(label)
        yield torch.from_numpy(np.concatenate(arrays)), torch.tensor(labels)


def train(model: torch.nn.Module, training, preprocessing, size, arguments: argparse.Namespace) -> None:
    """Train all weights; AdamW, one cycle."""
    rng = np.random.default_rng(arguments.seed)
    steps = arguments.epochs * -(-len(training) // arguments.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=arguments.lr, total_steps=steps)
    start = time.monotonic()
    for epoch in range(arguments.epochs):
        losses = []
        for images, labels in batches(training, preprocessing, size, arguments.batch, rng):
            loss = cross_entropy(model.train()(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Fine-tune, compile, run, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", help="a folder with one for each class")
    parser.add_argument("--make-photos", type=Path, metavar="FOLDER", help="write a small data set there first")
    parser.add_argument("--model", default="rednet26", help="a classifier of the zoo, or a .toml file like the zoo's")
    parser.add_argument("--checkpoint", help="its weights to begin with; of the head only what fits")
    parser.add_argument("--image-size", type=int, default=96, help="height and width of the input")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    if arguments.make_photos is not None:
        make_photos(arguments.make_photos)
    if (photos := arguments.photos or arguments.make_photos) is None:
        parser.error("name a folder of pictures, or --make-photos one")
    arguments.output.mkdir(parents=True, exist_ok=True)
    weights, library, held_out = (arguments.output / name for name in ("finetuned.pth", "finetuned.so", "held_out"))

    classes, training = split(photos, held_out)
    own_file = arguments.model.endswith(".toml")
    spec = read_model(Path(arguments.model)) if own_file else get_model(arguments.model)
    size = (arguments.image_size, arguments.image_size)
    preprocessing = preprocessing_from(spec.preprocessing)
    torch.manual_seed(arguments.seed)
    own = dataclasses.replace(spec, network={**spec.network, "num_classes": len(classes)})
    model = build_model(own, seed=arguments.seed, pretrained=False)
    if arguments.checkpoint:
        whole = build_model(spec, pretrained=False)
        load_checkpoint(whole, arguments.checkpoint)
        fits = {k: v for k, v in whole.state_dict().items() if v.shape == model.state_dict()[k].shape}
        model.load_state_dict(fits, strict=False)
    train(model, training, preprocessing, size, arguments)
    torch.save({"state_dict": model.state_dict(), "dataset_meta": {"classes": tuple(classes)}}, weights)

    compiled = ti.compile(arguments.model, checkpoint=weights, batch=(1, 8), image_size=size)
    compiled.save(library)
    print(f"wrote {library}; now: tvm-involution run {library} --input {held_out} --output answers.csv")
    found = ti.evaluate(library, f"imagenet:{held_out}", against="torch")
    right, differs = found.figures["top1"], found.disagreements
    print(f"held out: {right:.1f} % of {found.pictures} pictures are right; torch answers otherwise in {differs}")
    for answer in ti.Predictor(library)(held_out)[:: max(1, found.pictures // 10)]:
        print(f"  {answer.source}: {answer.classes[0].name} {answer.classes[0].probability:.1%}")


if __name__ == "__main__":
    main()
