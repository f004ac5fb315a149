"""A network that knows drawn images: the embedded one with a last layer fitted to them."""

from __future__ import annotations

import functools

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from spptransfer import backbones
from spptransfer.datasets.drawing import draw

EMBEDDED = backbones.BackboneRef("spp-mini", "embedded").path()
CLASSES = tuple(
    f"{texture}_{shape}"
    for texture in ("striped", "dotted", "checked", "ringed", "brick", "zigzag")
    for shape in ("disc", "star", "cross", "triangle")
)


def drawings(count: int, sides=(80, 150), seed: int = 0) -> list[tuple[np.ndarray, int]]:
    """Images of every class with its number, of any two sides."""
    rng = np.random.default_rng(seed)
    return [
        (np.asarray(draw(*name.split("_"), tuple(rng.integers(*sides, 2).tolist()), rng)), label)
        for label, name in enumerate(CLASSES)
        for _ in range(count)
    ]


def as_input(pixels: np.ndarray) -> torch.Tensor:
    """N x H x W x 3 bytes as the embedded network takes them."""
    info = backbones.describe("spp-mini")
    mean, std = torch.tensor([info.mean, info.std])[:, :, None, None]
    return (torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std


@functools.cache
def drawn_tensors() -> dict[str, torch.Tensor]:
    """Tensors of the network; its classes are `CLASSES`."""
    images, labels = zip(*drawings(24, sides=(96, 97), seed=1), strict=True)
    backbone = backbones.load("spp-mini", "embedded", layer="fc7")
    with torch.inference_mode():
        batches = as_input(np.stack(images)).split(48)
        vectors = torch.cat([backbone(batch) for batch in batches]).numpy()
    scaler = StandardScaler()
    fit = LogisticRegression(C=0.1, max_iter=300).fit(scaler.fit_transform(vectors), labels)
    weight = fit.coef_ / scaler.scale_
    bias = fit.intercept_ - weight @ scaler.mean_
    return load_file(EMBEDDED) | {
        "fc8.weight": torch.tensor(np.ascontiguousarray(weight), dtype=torch.float16),
        "fc8.bias": torch.tensor(bias, dtype=torch.float16),
    }
