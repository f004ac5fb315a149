"""Train the embedded backbone spp-mini on generated images, and write what the package ships.

    python tools/train_spp_mini.py

The images show textures and shapes that the demo's classes do not have. The network is trained
at several sizes as in section 2.3 of the SPP-net paper: one full epoch at one size, the next at
the other. The script ends with the transfer to the demo's classes, where random weights and
colour histograms set the scale, and writes `spp_mini.safetensors` and `spp_mini.md` beside the
backbones. It takes about 14 minutes of processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tempfile
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional

import spptransfer
from spptransfer.backbones.base import Network
from spptransfer.backbones.catalogue import describe
from spptransfer.backbones.loading import random_network
from spptransfer.backbones.mini import MiniNet, network
from spptransfer.datasets.drawing import draw
from spptransfer.datasets.generated import DEMO_CLASSES, TRAINING_CLASSES, generate
from spptransfer.images import decode, read_bytes, render

logger = logging.getLogger("train_spp_mini")

PACKAGE = Path(spptransfer.__file__).parent / "backbones"
INFO = describe("spp-mini")
SIZES = (64, 96)
CANVAS = 108
BATCH = 96
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05

Features = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Train, evaluate and write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    train_set = draw_training_set(arguments.images_per_class, seed=arguments.seed + 1)
    test_set = draw_training_set(10, seed=arguments.seed + 2)
    trained = train(*train_set, epochs=arguments.epochs)
    # What is evaluated is what is shipped, rounding included.
    trained.half().float()
    figures = {f"accuracy_{size}": accuracy(trained, *test_set, size=size) for size in SIZES}
    figures |= transfer(trained)
    for name, value in figures.items():
        logger.info("%s: %.1f %%", name, 100 * value)
    write(trained, figures, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images-per-class", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    return parser.parse_args()


# Training ----------------------------------------------------------------------------------


def draw_training_set(images_per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw square images of the training classes, uint8 N x 3 x 108 x 108, and their labels."""
    images = []
    for label, name in enumerate(TRAINING_CLASSES):
        for index in range(images_per_class):
            rng = np.random.default_rng([seed, label, index])
            # Drawn larger or smaller than needed: real files are resized too.
            side = int(rng.integers(76, 200))
            image = draw(*name.split("_"), (side, side), rng)
            images.append(np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)))
    labels = torch.arange(len(TRAINING_CLASSES)).repeat_interleave(images_per_class)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), labels


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> MiniNet:
    """Train from random weights under a one-cycle schedule."""
    student = network("spp-mini", len(TRAINING_CLASSES))
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15
    )
    for epoch in range(epochs):
        # The last epoch sees the size that the network is mostly used at.
        size = SIZES[(epoch - epochs) % 2]
        loss = train_epoch(student, images, labels, size, optimizer, schedule)
        logger.info("epoch %2d at %d pixels: loss %.3f", epoch + 1, size, loss)
    return student.eval()


def train_epoch(
    student: MiniNet,
    images: torch.Tensor,
    labels: torch.Tensor,
    size: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Show every image once at one size; the mean loss."""
    student.train()
    losses = []
    for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
        scores = student(prepare(augment(images[batch]), size))
        loss = functional.cross_entropy(scores, labels[batch], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def augment(images: torch.Tensor) -> torch.Tensor:
    """Crop and turn a batch; all of it alike, which is enough with the images' own variety."""
    side = max(SIZES)
    top, left = torch.randint(CANVAS - side + 1, (2,)).tolist()
    cropped = images[:, :, top : top + side, left : left + side]
    return torch.rot90(cropped, int(torch.randint(4, ())), dims=(2, 3))


def prepare(images: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """Normalise uint8 images, resized to squares of the given side if there is one."""
    pixels = images.float() / 255
    if size and images.shape[-1] != size:
        pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean, std = torch.tensor([INFO.mean, INFO.std])[:, :, None, None]
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, size: int) -> float:
    """Share of the images classified correctly."""
    predicted = [network(prepare(batch, size)).argmax(1) for batch in images.split(BATCH)]
    return float((torch.cat(predicted) == labels).float().mean())


# Transfer to the demo's classes --------------------------------------------------------------


def transfer(trained: MiniNet) -> dict[str, float]:
    """Accuracy of linear SVMs on the demo's classes: trained, random weights, colours alone."""
    random, _ = random_network("spp-mini", seed=0)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "demo")
        paths = sorted((Path(folder) / "demo").glob("*/*.*"))
        images = [render(decode(read_bytes(path)), scale=max(SIZES)) for path in paths]
    labels = np.array([DEMO_CLASSES.index(path.parent.name) for path in paths])
    rows = {
        "transfer_trained": pyramid_features(trained, images),
        "transfer_random": pyramid_features(random.eval(), images),
        "transfer_colour": np.stack([colour_histogram(image) for image in images]),
    }
    splits = StratifiedShuffleSplit(5, test_size=0.5, random_state=0)
    svm = LinearSVC(C=10, max_iter=20_000)
    return {
        name: float(cross_val_score(svm, normalize(features), labels, cv=splits).mean())
        for name, features in rows.items()
    }


@torch.inference_mode()
def pyramid_features(network: Network, images: list[Pixels]) -> Features:
    """The 50-bin pyramid of conv5, one row per image."""
    layers = nn.Sequential(network.trunk("spp"), network.pyramid)
    rows = []
    for image in images:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        rows.append(layers(prepare(pixels)).numpy()[0])
    return np.stack(rows)


def colour_histogram(image: Pixels) -> Features:
    """Shares of 8 x 8 x 8 colours, square-rooted."""
    counts, _ = np.histogramdd(image.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float32)


# Writing -------------------------------------------------------------------------------------


def write(trained: MiniNet, figures: dict[str, float], arguments: argparse.Namespace) -> None:
    """Write the weights in half precision and their model card."""
    tensors = {
        key: value.half().contiguous()
        for key, value in trained.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    recipe = (
        f"tools/train_spp_mini.py --epochs {arguments.epochs} "
        f"--images-per-class {arguments.images_per_class} --seed {arguments.seed}"
    )
    weights = arguments.out / "spp_mini.safetensors"
    about = {"name": "spp-mini", "licence": "BSD-3-Clause", "recipe": recipe}
    # One entry only: several would come in another order, and another hash, in every process.
    save_file(tensors, weights, metadata={"spptransfer": json.dumps(about)})
    template = Template((Path(__file__).parent / "spp_mini_card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        {name: f"{100 * value:.1f} %" for name, value in figures.items()},
        recipe=recipe,
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        parameters=f"{sum(tensor.numel() for tensor in tensors.values()):,}",
        trunk=f"{sum(p.numel() for p in trained.features.parameters()):,}",
    )
    (arguments.out / "spp_mini.md").write_text(card, encoding="utf-8")
    logger.info("wrote %s", weights)


if __name__ == "__main__":
    main()
