from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spptransfer import backbones
from spptransfer.pretraining.config import DistillSection, NetworkSection
from spptransfer.pretraining.data import IGNORED
from spptransfer.pretraining.student import PooledRegression, Student, build_student, losses

SMALL = NetworkSection(name="zf5-64", levels=(2, 1), dropout=0.25)
DISTILL = DistillSection(backbone="squeezenet1_1", levels=(2, 1), weight=3.0)
PAPER = ("zf5", "convnet-star-5", "overfeat-5", "overfeat-7")


def log_softmax(row):
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def test_scores_are_the_networks_own():
    student = build_student(SMALL, 3, DISTILL, seed=1).eval()
    images = torch.randn(2, 3, 32, 40)
    scores, predicted = student(images)
    assert scores.equal(student.network(images))
    assert predicted.shape == (2, 5, 512)


def test_a_seed_determines_the_weights_and_no_other_generator_is_touched():
    state = torch.get_rng_state()
    one, other, third = (build_student(SMALL, 3, DISTILL, seed) for seed in (7, 7, 8))
    assert torch.get_rng_state().equal(state)
    same = [a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(same)
    assert not one.network.conv1.weight.equal(third.network.conv1.weight)


def test_the_pipelines_dropout_is_the_networks():
    network = build_student(SMALL, 3, None, seed=0).network
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.25}


def test_every_bin_of_the_student_answers_for_the_same_bin_of_the_teacher():
    regression = PooledRegression(channels=4, length=6, levels=(2, 1), pooling="mean")
    maps = torch.randn(3, 4, 6, 8)
    quarters = [maps[:, :, y : y + 3, x : x + 4] for y in (0, 3) for x in (0, 4)]
    means = torch.stack([part.mean((2, 3)) for part in (*quarters, maps)], dim=1)
    assert torch.allclose(regression(maps), regression.linear(means), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "levels", "sides"),
    [
        *((name, None, (180, 197, 224)) for name in PAPER),
        *((name, (4, 3, 2, 1), (180, 197, 224)) for name in PAPER),
        *((f"{name}-no-spp", None, (224,)) for name in PAPER),
    ],
)
def test_all_the_papers_networks_train_at_all_sizes_of_the_paper(name, levels, sides):
    """Shapes alone, computed without a number: at every size, forth and back."""
    with torch.device("meta"):
        network = backbones.network(name, num_classes=11, levels=levels)
        student = Student(network, None).train()
        for side in sides:
            scores, _ = student(torch.empty(2, 3, side, side))
            assert scores.shape == (2, 11)
            scores.sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_is_the_textbooks(smoothing):
    rows, labels = [[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], [2, 0]
    expected = 0.0
    for row, label in zip(rows, labels, strict=True):
        target = [smoothing / 3 + (1 - smoothing) * (i == label) for i in range(3)]
        expected -= sum(t * p for t, p in zip(target, log_softmax(row), strict=True)) / 2
    found = losses((torch.tensor(rows), None), torch.tensor(labels), None, None, smoothing)
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    assert found.distillation.item() == 0


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_the_distance_from_the_teacher_is_the_mean_over_images_and_bins(loss):
    predicted, targets = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    distances = []
    for a, b in zip(predicted.flatten(0, 1), targets.flatten(0, 1), strict=True):
        cosine = (a @ b / (a.norm() * b.norm())).item()
        distances.append(1 - cosine if loss == "cosine" else ((a - b) ** 2).mean().item())
    distill = DISTILL.model_copy(update={"loss": loss})
    labels = torch.zeros(4, dtype=torch.int64)
    found = losses((torch.zeros(4, 2), predicted), labels, targets, distill, 0.0)
    assert found.distillation.item() == pytest.approx(sum(distances) / 20, rel=1e-4)
    expected = math.log(2) + 3.0 * found.distillation.item()
    assert found.total.item() == pytest.approx(expected, rel=1e-5)


def test_damaged_images_count_in_no_loss():
    scores, predicted, targets = torch.randn(5, 3), torch.randn(5, 5, 6), torch.randn(5, 5, 6)
    labels = torch.tensor([0, IGNORED, 2, IGNORED, 1])
    kept = labels != IGNORED
    whole = losses((scores, predicted), labels, targets, DISTILL, 0.1)
    sound = losses((scores[kept], predicted[kept]), labels[kept], targets[kept], DISTILL, 0.1)
    assert [v.item() for v in whole] == pytest.approx([v.item() for v in sound], rel=1e-5)


def test_a_batch_of_damaged_images_teaches_nothing():
    scores = torch.randn(2, 3, requires_grad=True)
    found = losses((scores, None), torch.full((2,), IGNORED), None, None, 0.1)
    found.total.backward()
    assert found.total.item() == 0
    assert not scores.grad.any()
