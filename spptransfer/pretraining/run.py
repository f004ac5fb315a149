"""One pre-training on this machine: from a pipeline and a folder to weights that load."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spptransfer.backbones import BackboneRef
from spptransfer.errors import ConfigError, ModelError
from spptransfer.files import exclusive_lock, make_folder, remove_leftovers
from spptransfer.pretraining import checkpoint
from spptransfer.pretraining.batches import TrainingBatches, ValidationBatches
from spptransfer.pretraining.card import Facts
from spptransfer.pretraining.config import PretrainingPipeline
from spptransfer.pretraining.distributed import Team, joined, prepared, team_of_environment
from spptransfer.pretraining.machine import Machine
from spptransfer.pretraining.outputs import WEIGHTS, RunFolder
from spptransfer.pretraining.pixels import MEMORY_LIMIT, Pixels
from spptransfer.pretraining.precision import choose_precision
from spptransfer.pretraining.source import Source, Split, digest, open_source, read_splits
from spptransfer.pretraining.student import Student, build_student
from spptransfer.pretraining.teacher import Teacher, prepare_teacher
from spptransfer.pretraining.training import Metrics, Trainer, parameters_of
from spptransfer.runtimes.devices import is_out_of_memory
from spptransfer.text import plural

_VALIDATION_BATCH = 256
# What may change between two runs of one training: it changes no number.
_FREE = {"dataset": {"root", "licence"}, "training": {"checkpoint_every", "weights"}}


@dataclass(frozen=True)
class Outcome:
    """What a pre-training left.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    weights : Path or None
        Weights after the last finished epoch, as safetensors.
    history : list of dict
        The lines of ``metrics.jsonl``.
    finished : bool
        False if it was stopped.
    """

    folder: Path
    weights: Path | None
    history: list[Metrics]
    finished: bool


@dataclass(frozen=True)
class _Place:
    """Settings, machine, processes and device of this process."""

    pipeline: PretrainingPipeline
    machine: Machine
    team: Team
    device: torch.device


def pretrain(pipeline: PretrainingPipeline, machine: Machine) -> Outcome:
    """Train a network, or go on where the folder's checkpoint stands.

    Started by torch's launcher, the processes train one network together: each takes its share
    of every batch, and the first one writes.

    Parameters
    ----------
    pipeline : PretrainingPipeline
        What is trained, on what and how.
    machine : Machine
        Where.

    Returns
    -------
    Outcome

    Raises
    ------
    ConfigError
        If the folder holds another pipeline's training.
    DatasetError, WeightsError, CacheError, ModelError
        As their names say; the message names the file.
    """
    team = team_of_environment()
    machine = machine if team.leads else machine.silent()
    device = machine.torch_device(team)
    make_folder(machine.folder)
    with (
        _locked(machine.folder, team),
        _torch_settings(machine.threads),
        joined(team, device),
        _memory_for(
            "this network and its batches",
            f"lower training.batch, {pipeline.training.batch}, or take a smaller network or size",
        ),
    ):
        return _pretrain(_Place(pipeline, machine, team, device))


@contextlib.contextmanager
def _memory_for(what: str, advice: str) -> Iterator[None]:
    """Say what does not fit in memory, and what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"there is not enough memory for {what}; {advice}") from error


@contextlib.contextmanager
def _locked(folder: Path, team: Team) -> Iterator[None]:
    """Keep other runs out of a folder; the first process stands for all."""
    if not team.leads:
        yield
        return
    with exclusive_lock(folder / "lock", f"the run '{folder}'"):
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def _torch_settings(threads: int | None) -> Iterator[None]:
    """Leave torch's global generators and number of threads as they were."""
    generator_state, before = torch.get_rng_state(), torch.get_num_threads()
    # Every step seeds those of the GPUs too.
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_rng_state(generator_state)
        if of_gpus:
            torch.cuda.set_rng_state_all(of_gpus)
        torch.set_num_threads(before)


def _pretrain(place: _Place) -> Outcome:
    pipeline, machine = place.pipeline, place.machine
    source = open_source(pipeline.dataset.root, machine.data_root)
    classes, train, val = read_splits(source, pipeline.dataset)
    data_sha256 = digest(source, (train, val))
    identity = _identity(place, data_sha256)
    state = _known_state(place, identity)
    machine.tell(
        f"{len(train):,} training and {len(val):,} validation images, "
        f"{plural(len(classes), 'class', 'classes')}"
    )
    pixels, val_pixels = _load_images(place, source, train, val)
    teacher = _teacher(place, pixels, data_sha256)
    trainer = _trainer(place, pixels, val_pixels, len(classes), teacher, state)
    facts = Facts(
        pipeline=pipeline,
        data_name=source.root.resolve().name,
        data_sha256=data_sha256,
        classes=classes,
        images=len(train),
        validation_images=len(val),
        damaged=pixels.damaged + val_pixels.damaged,
        parameters=parameters_of(trainer.student.network),
        precision=trainer.precision,
        processes=place.team.count,
        device=place.device.type,
        teacher_sha256=teacher.weights_sha256 if teacher is not None else None,
    )
    saved = {"identity": identity, "precision": trainer.precision}
    return _Run(place, trainer, RunFolder(machine.folder, facts, saved)).run()


def _identity(place: _Place, data_sha256: str) -> str:
    """Hash of all that the loss curve depends on."""
    values = place.pipeline.model_dump(mode="json", exclude=_FREE)
    distill = place.pipeline.distill
    if distill is not None:
        # A file may have got other weights since, or another place.
        teacher = BackboneRef(distill.backbone, distill.weights, place.machine.weights_dir)
        values["distill"]["weights"] = teacher.weights_sha256()
    text = json.dumps([values, data_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _known_state(place: _Place, identity: str) -> dict[str, Any] | None:
    """The folder's checkpoint, if it is this training's."""
    folder = place.machine.folder
    state = checkpoint.load(folder)
    if state is None and (folder / WEIGHTS).exists():
        raise ConfigError(
            f"'{folder}' holds weights but no checkpoint to go on from, and training anew would "
            "write over them; name another folder with --out, or remove this one"
        )
    if state is not None and state.get("identity") != identity:
        raise ConfigError(
            f"'{folder}' holds a training with other settings, images or teacher; name another "
            "folder with --out, or remove this one"
        )
    done = -1.0 if state is None else state["epoch"] + state["step"] / 2**32
    if not place.team.agrees(done):
        raise ConfigError(f"'{folder}' must be one folder that all processes share")
    return state


def _load_images(place: _Place, source: Source, train: Split, val: Split) -> tuple[Pixels, Pixels]:
    limit, scale = MEMORY_LIMIT // place.team.local_count, place.pipeline.images.resize
    pixels, val_pixels = (Pixels(source, split, scale, limit) for split in (train, val))
    with _memory_for("the decoded images", f"lower images.resize, {scale}"):
        for split in (pixels, val_pixels):
            split.load(place.machine.decoders(place.team), place.machine.preparing)
    return pixels, val_pixels


def _teacher(place: _Place, pixels: Pixels, data_sha256: str) -> Teacher | None:
    section = place.pipeline.distill
    if section is None:
        return None
    advice = f"lower distill.scale, {section.scale}, or take a smaller distill.backbone"
    with _memory_for("the teacher", advice):
        return prepare_teacher(
            section, pixels, data_sha256, place.machine, place.team, place.device
        )


def _trainer(
    place: _Place,
    pixels: Pixels,
    val_pixels: Pixels,
    num_classes: int,
    teacher: Teacher | None,
    state: dict[str, Any] | None,
) -> Trainer:
    """Build a trainer and bring it to where the last run stood."""
    pipeline, team, device = place.pipeline, place.team, place.device
    section, images = pipeline.training, pipeline.images
    shares = {"rank": team.rank, "processes": team.count}
    batches = TrainingBatches(pixels, images, section.batch, section.seed, **shares)
    if batches.batch < team.count:
        raise ConfigError(f"{team.count} processes cannot share batches of {batches.batch} images")
    student: Student = build_student(pipeline.network, num_classes, pipeline.distill, section.seed)
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if state is None:
        precision = choose_precision(section.precision, student, images.size, device, team)
    else:
        # Timed anew, a run might go on in another arithmetic than it began with.
        precision = state["precision"]
    trainer = Trainer(
        pipeline,
        prepared(student, team, device),
        batches,
        ValidationBatches(val_pixels, images.size, _VALIDATION_BATCH, **shares),
        teacher,
        precision,
        # From memory one thread keeps up with the network.
        place.machine.jobs or (1 if pixels.fits else place.machine.decoders(team)),
        team,
    )
    if state is not None:
        trainer.restore(state)
    return trainer


class _Run:
    """A trainer at work in a folder: what is written when."""

    def __init__(self, place: _Place, trainer: Trainer, folder: RunFolder) -> None:
        self._place = place
        self._trainer = trainer
        self._folder = folder

    def run(self) -> Outcome:
        """Train to the end, or until told to stop."""
        trainer, machine = self._trainer, self._place.machine
        self._tell_what_is_left()
        self._catch_up()
        while not trainer.finished and not self._stopping():
            if not self._epoch():
                break
        weights = machine.folder / WEIGHTS
        return Outcome(
            machine.folder,
            weights if weights.exists() else None,
            trainer.history,
            trainer.finished,
        )

    def _tell_what_is_left(self) -> None:
        trainer, machine = self._trainer, self._place.machine
        epoch, step = trainer.position.epoch, trainer.position.step
        epochs = plural(self._place.pipeline.training.epochs, "epoch")
        steps = plural(trainer.steps, "step")
        if trainer.finished:
            machine.tell(f"finished before: {epochs} of {steps}; run: {machine.folder}")
            return
        if epoch or step:
            machine.tell(f"going on in epoch {epoch + 1} after {step} of {steps}")
        machine.tell(f"{epochs} of {steps} in {trainer.precision}; run: {machine.folder}")

    def _epoch(self) -> bool:
        """Run the rest of an epoch; False if it was stopped before its end."""
        trainer, machine = self._trainer, self._place.machine
        every = self._place.pipeline.training.checkpoint_every
        label = f"epoch {trainer.position.epoch + 1} at {trainer.side} pixels"
        left = trainer.steps - trainer.position.step
        for step in machine.progress(trainer.train_epoch(), left, label):
            if step == trainer.steps:
                break
            stopping = self._stopping()
            if stopping or step % every == 0:
                self._write_checkpoint()
            if stopping:
                return False
        line = trainer.finish_epoch()
        self._write_checkpoint()
        if self._place.team.leads:
            self._folder.write_history(trainer.history)
            self._folder.write_weights(trainer.student.network, trainer.history)
        machine.tell(describe_epoch(line, self._place.pipeline.training.epochs))
        return True

    def _stopping(self) -> bool:
        """Whether one of the processes was asked to stop: then all do, after the same step."""
        return self._place.team.any(self._place.machine.stop.is_set())

    def _write_checkpoint(self) -> None:
        if self._place.team.leads:
            self._folder.write_checkpoint(self._trainer.state())

    def _catch_up(self) -> None:
        """Write what a run that was killed between checkpoint and weights had not written."""
        trainer = self._trainer
        if not self._place.team.leads:
            return
        self._folder.write_history(trainer.history)
        at_an_end = bool(trainer.history) and trainer.position.step == 0
        if at_an_end and not self._folder.has_weights(len(trainer.history)):
            self._folder.write_weights(trainer.student.network, trainer.history)


def describe_epoch(line: Metrics, epochs: int) -> str:
    """One line for people about a line of the metrics.

    Examples
    --------
    >>> describe_epoch({"epoch": 3, "size": 64, "lr": 0.01, "loss": 2.5, "val_top1": 0.25,
    ...                 "val_top5": 0.5, "seconds": 12.0, "images_per_second": 3000.0}, 70)
    'epoch  3/70 at 64 pixels, lr 0.01: loss 2.500, top-1 25.0 %, top-5 50.0 %, 12 s, 3000 images/s'
    """
    width = len(str(epochs))
    return (
        f"epoch {line['epoch']:>{width}}/{epochs} at {line['size']} pixels, lr {line['lr']:.3g}: "
        f"loss {line['loss']:.3f}, top-1 {100 * line['val_top1']:.1f} %, "
        f"top-5 {100 * line['val_top5']:.1f} %, {line['seconds']:.0f} s, "
        f"{line['images_per_second']:.0f} images/s"
    )
