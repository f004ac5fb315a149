"""The network in training: its scores, and what it predicts of a teacher's features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from spptransfer import backbones
from spptransfer.backbones import describe
from spptransfer.backbones.networks import Network
from spptransfer.pretraining.config import DistillSection, NetworkSection
from spptransfer.pretraining.data import IGNORED
from spptransfer.pyramid import SpatialPyramidPooling


class PooledRegression(nn.Module):
    """One linear map from the pooled features of a bin to the teacher's of the same bin."""

    def __init__(self, channels: int, length: int, levels: tuple[int, ...], pooling: str) -> None:
        super().__init__()
        self.pools = nn.ModuleList(SpatialPyramidPooling([level], pooling) for level in levels)
        self.linear = nn.Linear(channels, length)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Predict N x bins x length features from N x C x H x W maps."""
        pooled = [pool(maps).unflatten(1, (maps.shape[1], -1)) for pool in self.pools]
        return self.linear(torch.cat(pooled, dim=2).transpose(1, 2))


class Student(nn.Module):
    """A network and, with a teacher, the linear map to the teacher's features.

    One module computes everything that the loss needs, which is what data parallelism wants.
    """

    def __init__(self, network: Network, regression: PooledRegression | None) -> None:
        super().__init__()
        self.network = network
        self.regression = regression

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute class scores, and what is predicted of the teacher's features."""
        maps = self.network.trunk("spp")(images)
        predicted = self.regression(maps) if self.regression is not None else None
        return self.network.classifier_modules()(maps), predicted


def build_student(
    section: NetworkSection, num_classes: int, distill: DistillSection | None, seed: int
) -> Student:
    """Build network and regression from a seed, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = backbones.network(section.name, num_classes=num_classes, levels=section.levels)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = section.dropout
        regression = None
        if distill is not None:
            channels = describe(section.name).layer("spp").channels
            length = describe(distill.backbone).layer(distill.layer).channels
            pooling = distill.student_pooling
            regression = PooledRegression(channels, length, distill.levels, pooling)
    return Student(network, regression)


class StepLosses(NamedTuple):
    """A step's losses, each the mean over the images that count; `total` is what is minimised."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    distillation: torch.Tensor


def losses(
    outputs: tuple[torch.Tensor, torch.Tensor | None],
    labels: torch.Tensor,
    targets: torch.Tensor | None,
    distill: DistillSection | None,
    label_smoothing: float,
) -> StepLosses:
    """Compute the cross entropy, and the distance of the predicted features from the teacher's.

    Parameters
    ----------
    outputs : (Tensor, Tensor or None)
        What `Student` returns.
    labels : Tensor of shape (N,)
        Class numbers; images with `IGNORED` do not count, and if none counts the losses are 0.
    targets : Tensor of shape (N, bins, length) or None
        The teacher's standardised features.
    distill : DistillSection or None
        Which distance and how much of it.
    label_smoothing : float
        Share of the target given to all classes alike.
    """
    scores, predicted = outputs
    counted = labels != IGNORED
    count = counted.sum().clamp(min=1)
    summed = functional.cross_entropy(
        scores.float(),
        labels,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    entropy = summed / count
    if predicted is None or targets is None or distill is None:
        return StepLosses(entropy, entropy.detach(), torch.zeros_like(entropy))
    distances = _distances(predicted.float(), targets, distill.loss)
    distance = (distances * counted).sum() / count
    return StepLosses(entropy + distill.weight * distance, entropy.detach(), distance.detach())


def _distances(predicted: torch.Tensor, targets: torch.Tensor, loss: str) -> torch.Tensor:
    """Mean over the bins of every image."""
    if loss == "cosine":
        return 1 - functional.cosine_similarity(predicted, targets, dim=-1).mean(1)
    return (predicted - targets).square().mean((1, 2))
