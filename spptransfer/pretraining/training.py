"""The loop: epochs of steps from a state that can be saved and restored at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from spptransfer.backbones.registry import describe
from spptransfer.errors import ConfigError, ModelError
from spptransfer.pretraining.batches import (
    IGNORED,
    Batch,
    TrainingBatches,
    ValidationBatches,
    prefetched,
    side_of_epoch,
)
from spptransfer.pretraining.config import PretrainingPipeline
from spptransfer.pretraining.distributed import Team, in_parallel
from spptransfer.pretraining.schedule import Schedule
from spptransfer.pretraining.student import Losses, Student, losses
from spptransfer.pretraining.teacher import Teacher

Metrics = dict[str, float]
_DROPOUT = 4  # beside the numbers from which `batches` draws
_SUMS = ("loss", "cross_entropy", "distillation", "seconds")


@dataclass
class Position:
    """Where a run stands: epochs done, steps done in this one, and sums over those steps."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))


class Trainer:
    """A network in training.

    Parameters
    ----------
    pipeline : PretrainingPipeline
        How it is trained.
    student : Student
        The network, on its device.
    batches : TrainingBatches
        What it learns from.
    validation : ValidationBatches
        What it is measured on after every epoch.
    teacher : Teacher or None
        Whose features it learns to predict.
    precision : {"float32", "bfloat16"}
        Arithmetic of the network.
    workers : int
        Background threads that prepare batches.
    team : Team
        Processes that train together.
    """

    def __init__(
        self,
        pipeline: PretrainingPipeline,
        student: Student,
        batches: TrainingBatches,
        validation: ValidationBatches,
        teacher: Teacher | None,
        precision: str,
        workers: int,
        team: Team,
    ) -> None:
        section = pipeline.training
        self.pipeline = pipeline
        self.student = student
        self.precision = precision
        self.position = Position()
        self.history: list[Metrics] = []
        self.schedule = Schedule(section, batches.steps)
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            lr=section.learning_rate,
            momentum=section.momentum,
            nesterov=section.nesterov,
            weight_decay=section.weight_decay,
        )
        self._batches = batches
        self._validation = validation
        self._teacher = teacher
        self._workers = workers
        self._team = team
        self._device = next(student.parameters()).device
        info = describe(pipeline.network.name)
        # In units of bytes, as the images are.
        self._mean, self._std = (
            torch.tensor(values, device=self._device)[:, None, None] * 255
            for values in (info.mean, info.std)
        )
        forward: Any = torch.compile(student, dynamic=False) if section.compile else student
        self._forward = in_parallel(forward, team, self._device)

    def train_epoch(self) -> Iterator[int]:
        """Run what is left of the current epoch, pausing after every step.

        Yields
        ------
        int
            Steps done in this epoch; the trainer's state may be saved at that moment.
        """
        position, epoch = self.position, self.position.epoch
        side = self.side
        self.student.train()
        steps = prefetched(
            lambda step: self._with_targets(self._batches.make(epoch, step)),
            position.step,
            self._batches.steps,
            self._workers,
        )
        start = time.perf_counter()
        for batch, targets in steps:
            self._step(batch, targets, side)
            position.step += 1
            now = time.perf_counter()
            position.sums["seconds"] += now - start
            yield position.step
            start = time.perf_counter()

    def finish_epoch(self) -> Metrics:
        """Measure the network, add a line to the history, and go to the next epoch."""
        position = self.position
        steps, seconds = self._batches.steps, position.sums["seconds"]
        rate, side = self.schedule.rate(position.epoch, steps - 1), self.side
        self._team.share_buffers(self.student)
        top1, top5 = self.validate()
        self.schedule.observe(1 - top1)
        line = {
            "epoch": position.epoch + 1,
            **{name: position.sums[name] / steps for name in _SUMS[:3]},
            "val_top1": top1,
            "val_top5": top5,
            "lr": rate,
            "size": side,
            "seconds": round(seconds, 2),
            "images_per_second": round(steps * self._batches.batch / max(seconds, 1e-9), 1),
        }
        self.history.append(line)
        self.position = Position(epoch=position.epoch + 1)
        return line

    @property
    def side(self) -> int:
        """Side of the network's input in the current epoch."""
        section = self.pipeline.training
        return side_of_epoch(
            self.pipeline.images, section.seed, self.position.epoch, section.epochs
        )

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self._batches.steps

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch >= self.pipeline.training.epochs

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Shares of the validation images whose class is the first, and among the first five.

        Raises
        ------
        ModelError
            If scores are not finite: the epoch's last step, whose own loss was, has diverged.
        """
        self.student.eval()
        right = np.zeros(2)
        count = lost = 0
        steps = prefetched(self._validation.make, 0, self._validation.steps, self._workers)
        for batch in steps:
            if not len(batch.labels):
                continue  # a short last batch has no share for every process
            with self._autocast():
                scores, _ = self.student(self._inputs(batch, self.pipeline.images.size))
            labels = torch.from_numpy(batch.labels).to(self._device)
            best = scores.float().topk(min(5, scores.shape[1])).indices
            hits = best == labels[:, None]
            right += [int(hits[:, 0].sum()), int(hits.sum())]
            count += int((labels != IGNORED).sum())
            lost += int((~scores.isfinite()).sum())
        top1, top5, counted, lost_by_all = self._team.sums([*right, count, lost])
        if lost_by_all:
            raise self._diverged("the class scores are not finite")
        return top1 / max(counted, 1), top5 / max(counted, 1)

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs."""
        position = self.position
        # Everything random is drawn from the seed and the position: no generator has a state.
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "epoch": position.epoch,
            "step": position.step,
            "sums": dict(position.sums),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.restore(state["schedule"])
        self.position = Position(state["epoch"], state["step"], dict(state["sums"]))
        self.history = list(state["history"])

    def _with_targets(self, batch: Batch) -> tuple[Batch, torch.Tensor | None]:
        if self._teacher is None:
            return batch, None
        return batch, torch.from_numpy(self._teacher.targets(batch.positions, batch.flipped))

    def _step(self, batch: Batch, targets: torch.Tensor | None, side: int) -> None:
        position, section = self.position, self.pipeline.training
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(position.epoch, position.step)
        labels = torch.from_numpy(batch.labels).to(self._device)
        targets = targets.to(self._device) if targets is not None else None
        torch.manual_seed(self._dropout_seed())
        with self._autocast():
            outputs = self._outputs(self._inputs(batch, side))
        found = losses(outputs, labels, targets, self.pipeline.distill, section.label_smoothing)
        weight, means = self._over_all(found, int((batch.labels != IGNORED).sum()))
        self.optimizer.zero_grad(set_to_none=True)
        (weight * found.total).backward()
        self.optimizer.step()
        for name, value in zip(_SUMS[:3], means, strict=True):
            position.sums[name] += value
        if not math.isfinite(position.sums["loss"]):
            raise self._diverged(f"the loss is {means[0]}")

    def _outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        try:
            outputs: tuple[torch.Tensor, torch.Tensor | None] = self._forward(images)
            return outputs
        except RuntimeError as error:  # a compiler is looked for when it is first needed
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).splitlines()[0]
            raise ConfigError(f"training.compile: torch cannot do so here: {reason}") from error

    def _diverged(self, why: str) -> ModelError:
        epoch, step = self.position.epoch + 1, min(self.position.step + 1, self.steps)
        return ModelError(
            f"training diverged in epoch {epoch}, step {step}: {why}; lower "
            f"training.learning_rate, {self.pipeline.training.learning_rate}"
        )

    def _over_all(self, found: Losses, count: int) -> tuple[float, list[float]]:
        """Factor of this process's loss, and the means of the losses over the whole batch.

        Shares may hold unlike numbers of images that count; with the factor the mean of all
        processes' gradients is the gradient of the mean over all images.
        """
        values = torch.stack(list(found)).detach().tolist()
        total, *sums = self._team.sums([count, *(count * value for value in values)])
        total = max(total, 1.0)
        return count * self._team.count / total, [value / total for value in sums]

    def _dropout_seed(self) -> int:
        """Seed of the step's dropout, another one in every process."""
        position, seed = self.position, self.pipeline.training.seed
        drawn = [seed, _DROPOUT, position.epoch, position.step, self._team.rank]
        return int(np.random.SeedSequence(drawn).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _inputs(self, batch: Batch, side: int) -> torch.Tensor:
        """Normalised images on the device, resized to squares of a side."""
        # The bytes lie channel by channel within a pixel: this is the channels-last format.
        images = torch.from_numpy(batch.images).to(self._device).permute(0, 3, 1, 2).float()
        if batch.colours.any():
            images += torch.from_numpy(batch.colours).to(self._device)[:, :, None, None]
        images = (images - self._mean) / self._std
        if side != images.shape[-1]:
            images = functional.interpolate(
                images, (side, side), mode="bilinear", antialias=True, align_corners=False
            )
        return images.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)


def parameters_of(module: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(parameter.numel() for parameter in module.parameters())
