"""The loop: epochs of steps from a state that can be saved and restored at any step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

from spptransfer.backbones import describe
from spptransfer.errors import ConfigError, ModelError
from spptransfer.pretraining.config import PretrainingPipeline
from spptransfer.pretraining.data import (
    DROPOUT,
    IGNORED,
    ImageItem,
    Steps,
    TrainingImages,
    ValidationImages,
    as_input,
    make_loader,
    side_of_epoch,
)
from spptransfer.pretraining.distributed import all_sums, rank, world_size
from spptransfer.pretraining.schedule import rate
from spptransfer.pretraining.source import LabelledFiles
from spptransfer.pretraining.student import Student, losses
from spptransfer.pretraining.teacher import Teacher

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
_VALIDATION_BATCH = 256
_LOSSES = ("loss", "cross_entropy", "distillation")


@dataclass
class Position:
    """Where a run stands: epochs done, steps done in this one, and sums over those steps."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys((*_LOSSES, "damaged", "seconds"), 0.0)
    )


class NetworkTrainer:
    """A network in training.

    It is made of the network on its device, of what that learns from and what it is measured on,
    of a teacher if there is one, and of how many processes prepare images (0: this one does).
    """

    def __init__(
        self,
        pipeline: PretrainingPipeline,
        student: Student,
        train: LabelledFiles,
        validation: LabelledFiles,
        teacher: Teacher | None,
        precision: str,
        jobs: int,
    ) -> None:
        section, processes = pipeline.training, world_size()
        self.device = next(student.parameters()).device
        if processes > 1 and self.device.type == "cuda":
            student = cast(Student, nn.SyncBatchNorm.convert_sync_batchnorm(student))
        self.pipeline, self.student, self.precision = pipeline, student, precision
        self.position, self.history = Position(), list[Metrics]()
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            lr=section.learning_rate,
            momentum=section.momentum,
            nesterov=section.nesterov,
            weight_decay=section.weight_decay,
        )
        self._batch = min(section.batch, len(train) // processes * processes)
        if not self._batch or self._batch % processes:
            raise ConfigError(
                f"training.batch: {processes} processes cannot share {self._batch} images equally"
            )
        self._names, self._told = (train.names, validation.names), set[str]()
        self._steps = Steps(len(train), self._batch, section.seed, rank(), processes)
        loading: dict[str, Any] = {"jobs": jobs, "pin_memory": self.device.type == "cuda"}
        images = TrainingImages(train, pipeline.images, section.seed)
        self._training = make_loader(
            images, batch_sampler=self._steps, persistent_workers=jobs > 0, **loading
        )
        share = Subset(
            ValidationImages(validation, pipeline.images),
            range(rank(), len(validation), processes),
        )
        self._validation = make_loader(share, batch_size=_VALIDATION_BATCH, **loading)
        self._teacher = teacher
        info = describe(pipeline.network.name)
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device)[:, None, None]
            for values in (info.mean, info.std)
        )
        self._forward: nn.Module = student
        if processes > 1:
            self._forward = DistributedDataParallel(student)

    def train_epoch(self) -> Iterator[int]:
        """Run what is left of the current epoch, pausing after every step.

        Yields
        ------
        int
            Steps done in this epoch; the trainer's state may be saved at that moment.
        """
        position = self.position
        self._steps.epoch, self._steps.first = position.epoch, position.step
        self.student.train()
        start = time.perf_counter()
        for batch in self._training:
            self._step(batch)
            position.step += 1
            position.sums["seconds"] += time.perf_counter() - start
            yield position.step
            start = time.perf_counter()

    def finish_epoch(self) -> Metrics:
        """Measure the network, add a line to the history, and go to the next epoch."""
        position, steps = self.position, self.steps
        sums, last_rate = position.sums, self._rate(steps - 1)
        if world_size() > 1:  # on CPUs each process has batch statistics of its own
            for buffer in self.student.buffers():
                distributed.broadcast(buffer, src=0)
        top1, top5, damaged = self.validate()
        line = {
            "epoch": position.epoch + 1,
            **{name: sums[name] / steps for name in _LOSSES},
            "val_top1": top1,
            "val_top5": top5,
            "damaged": round(sums["damaged"] + damaged),
            "lr": last_rate,
            "size": self.side,
            "seconds": round(sums["seconds"], 2),
            "images_per_second": round(steps * self._batch / max(sums["seconds"], 1e-9), 1),
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
        return len(self._steps)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch >= self.pipeline.training.epochs

    @torch.no_grad()
    def validate(self) -> tuple[float, float, int]:
        """Measure top-1 and top-5 accuracy, as shares, and count the damaged images.

        Raises
        ------
        ModelError
            If scores are not finite: the epoch's last step, whose own loss was, has diverged.
        """
        self.student.eval()
        counts = np.zeros(4)
        for batch in self._validation:
            self._tell_damaged(batch, self._names[1])
            with self._autocast():
                scores, _ = self.student(self._inputs(batch, self.pipeline.images.size))
            labels = batch["label"].to(self.device)
            hits = scores.float().topk(min(5, scores.shape[1])).indices == labels[:, None]
            lost = (~scores.isfinite()).sum()
            found = (hits[:, 0].sum(), hits.sum(), (labels == IGNORED).sum(), lost)
            counts += [int(number) for number in found]
        shown = len(cast(Any, self._validation.dataset))
        top1, top5, damaged, lost_by_all, images = all_sums([*counts, shown])
        if lost_by_all:
            raise self._diverged("the class scores are not finite")
        counted = max(images - damaged, 1)
        return top1 / counted, top5 / counted, int(damaged)

    def state(self) -> dict[str, Any]:
        """Return everything that a continued run needs: no random generator has a state."""
        position = self.position
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": position.epoch,
            "step": position.step,
            "sums": dict(position.sums),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(state["epoch"], state["step"], dict(state["sums"]))
        self.history = list(state["history"])

    def _rate(self, step: int) -> float:
        errors = [1 - line["val_top1"] for line in self.history]
        part = 1 / self.steps
        return rate(self.pipeline.training, self.position.epoch + step * part, part, errors)

    def _step(self, batch: ImageItem) -> None:
        position, section = self.position, self.pipeline.training
        self._tell_damaged(batch, self._names[0])
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(position.step)
        targets = None
        if self._teacher is not None:
            targets = self._teacher.targets(batch["position"], batch["flipped"]).to(self.device)
        labels = batch["label"].to(self.device, non_blocking=True)
        # Dropout is drawn anew in every step and process.
        drawn = [section.seed, DROPOUT, position.epoch, position.step, rank()]
        torch.manual_seed(int(np.random.SeedSequence(drawn).generate_state(1)[0]))
        with self._autocast():
            outputs = self._forward(self._inputs(batch, self.side))
        found = losses(outputs, labels, targets, self.pipeline.distill, section.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        found.total.backward()  # of several processes the gradients' mean
        self.optimizer.step()
        values = torch.stack([*found, (labels == IGNORED).sum()]).detach().tolist()
        *means, damaged = all_sums(values)
        for name, value in zip(_LOSSES, means, strict=True):
            position.sums[name] += value / world_size()
        position.sums["damaged"] += damaged
        if not math.isfinite(position.sums["loss"]):
            raise self._diverged(f"the loss is {means[0] / world_size()}")

    def _tell_damaged(self, batch: ImageItem, names: tuple[str, ...]) -> None:
        for position, error in zip(batch["position"].tolist(), batch["error"], strict=True):
            if error and names[position] not in self._told:  # it is met again in every epoch
                self._told.add(names[position])
                logger.warning("'%s' is left out: %s", names[position], error)

    def _diverged(self, why: str) -> ModelError:
        epoch, step = self.position.epoch + 1, min(self.position.step + 1, self.steps)
        return ModelError(
            f"training diverged in epoch {epoch}, step {step}: {why}; lower "
            f"training.learning_rate, {self.pipeline.training.learning_rate}"
        )

    def _inputs(self, batch: ImageItem, side: int) -> torch.Tensor:
        """Normalise images on the device and resize them to squares of a side."""
        images = (as_input(batch, self.device) - self._mean) / self._std
        if side != images.shape[-1]:
            images = functional.interpolate(
                images, (side, side), mode="bilinear", antialias=True, align_corners=False
            )
        return images.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
