"""One pre-training on this machine: from a pipeline and images to weights that load."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spptransfer.backbones import BackboneRef
from spptransfer.errors import ConfigError, ModelError
from spptransfer.files import exclusive_lock, make_folder, remove_leftovers
from spptransfer.pretraining import folder as files
from spptransfer.pretraining.card import describe_epochs, describe_training
from spptransfer.pretraining.config import PretrainingPipeline
from spptransfer.pretraining.distributed import (
    all_sums,
    local_world_size,
    process_group,
    rank,
    training_device,
    world_size,
)
from spptransfer.pretraining.source import LabelledFiles, open_source, open_splits
from spptransfer.pretraining.student import build_student
from spptransfer.pretraining.teacher import Teacher, prepare_teacher
from spptransfer.pretraining.training import Metrics, NetworkTrainer
from spptransfer.runtimes.devices import has_bfloat16, is_out_of_memory
from spptransfer.system import count_processors
from spptransfer.text import plural

logger = logging.getLogger(__name__)

# What may change between two runs of one training: it changes no number.
_FREE = {"dataset": {"root", "licence"}, "training": {"checkpoint_every", "weights"}}


def _passed_through(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    return items


@dataclass
class TrainingMachine:
    """Where and with what a pre-training runs.

    Parameters
    ----------
    folder : Path
        Folder of the run: checkpoint, metrics, weights, the teacher's features.
    data_root : Path or None
        Folder in which the images are looked for.
    weights_dir : Path or None
        Folder of official weights, for a teacher.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    jobs : int or None
        Processes that prepare images, 0 for none; by default one per processor.
    threads : int or None
        Threads of the network itself, on a CPU; by default one per processor. On a machine that
        others use too, fewer may be faster.
    progress : callable
        Wraps an iterable, given its length and a label.
    tell : callable
        Told one line for people, now and then.
    stop : Event
        Once set, the step in work is finished, the state saved, and the run ends.
    """

    folder: Path
    data_root: Path | None = None
    weights_dir: Path | None = None
    device: str = "auto"
    jobs: int | None = None
    threads: int | None = None
    progress: Callable[[Iterable[Any], int, str], Iterable[Any]] = _passed_through
    tell: Callable[[str], None] = logger.info
    stop: threading.Event = field(default_factory=threading.Event)


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


def pretrain(pipeline: PretrainingPipeline, machine: TrainingMachine) -> Outcome:
    """Train a network, or go on where the folder's checkpoint stands.

    Started by torch's launcher, the processes train one network together: each takes its share
    of every batch, and the first one writes.

    Parameters
    ----------
    pipeline : PretrainingPipeline
        What is trained, on what and how.
    machine : TrainingMachine
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
    device = training_device(machine.device)
    advice = f"lower training.batch, {pipeline.training.batch}, or take a smaller network or size"
    make_folder(machine.folder)
    with contextlib.ExitStack() as stack:
        if rank() == 0:
            what = f"the run '{machine.folder}'"
            stack.enter_context(exclusive_lock(machine.folder / "lock", what))
            remove_leftovers(machine.folder)
        stack.enter_context(_torch_settings(machine.threads))
        stack.enter_context(process_group(device))
        stack.enter_context(_memory_for("this network and its batches", advice))
        run = _Run(pipeline, machine, device)
        run.train()
        return run.outcome()


@contextlib.contextmanager
def _memory_for(what: str, advice: str) -> Iterator[None]:
    """Say what does not fit in memory, and what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0].rstrip(". ")
        if reason.startswith("DataLoader worker (pid"):  # killed, as for want of shared memory
            raise ModelError(f"{reason}; --jobs 0 prepares the images without workers") from error
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"there is not enough memory for {what}; {advice}") from error


@contextlib.contextmanager
def _torch_settings(threads: int | None) -> Iterator[None]:
    """Leave torch's global generators and number of threads as they were."""
    before = torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _Run:
    """A training in its folder: what is read first, and what is written when."""

    def __init__(
        self, pipeline: PretrainingPipeline, machine: TrainingMachine, device: torch.device
    ) -> None:
        self._pipeline, self._machine, self._folder = pipeline, machine, machine.folder
        source = open_source(pipeline.dataset.root, machine.data_root)
        train, val = open_splits(source, pipeline.dataset)
        sha256 = hashlib.sha256(f"{train.digest()} {val.digest()}".encode()).hexdigest()
        self._identity = _identity(pipeline, machine, sha256)
        state = self._known_state()
        machine.tell(
            f"{len(train):,} training and {len(val):,} validation images, "
            f"{plural(len(train.classes), 'class', 'classes')}"
        )
        jobs = machine.jobs
        if jobs is None:
            processors = count_processors() // local_world_size()
            jobs = processors if processors > 1 else 0
        teacher = self._teacher(train, sha256, device, jobs)
        precision: str = pipeline.training.precision
        if precision == "auto":  # chosen once: another machine goes on in the same arithmetic
            chosen = "bfloat16" if has_bfloat16(device) else "float32"
            precision = chosen if state is None else state["precision"]
        student: Any = build_student(
            pipeline.network, len(train.classes), pipeline.distill, pipeline.training.seed
        )
        student = student.to(device, memory_format=torch.channels_last)
        self._trainer = NetworkTrainer(pipeline, student, train, val, teacher, precision, jobs)
        if state is not None:
            self._trainer.restore(state)
        network = self._trainer.student.network
        data = {
            "name": source.root.resolve().name,
            "sha256": sha256,
            "images": len(train),
            "validation_images": len(val),
        }
        self._about = describe_training(pipeline, data, train.classes) | {
            "parameters": sum(each.numel() for each in network.parameters()),
            "teacher_sha256": None if teacher is None else teacher.weights_sha256,
            "machine": {
                "device": device.type,
                "processes": world_size(),
                "precision": self._trainer.precision,
            },
        }

    def _known_state(self) -> dict[str, Any] | None:
        """Read the folder's checkpoint, if it is this training's."""
        folder = self._folder
        state = files.load_checkpoint(folder)
        if state is None and (folder / files.WEIGHTS).exists():
            raise ConfigError(
                f"'{folder}' holds weights but no checkpoint to go on from, and training anew "
                "would write over them; name another folder with --out, or remove this one"
            )
        if state is not None and state.get("identity") != self._identity:
            raise ConfigError(
                f"'{folder}' holds a training with other settings, images or teacher; name another "
                "folder with --out, or remove this one"
            )
        done = -1.0 if state is None else state["epoch"] + state["step"] / 2**32
        mean = all_sums([done])[0] / world_size()
        if any(all_sums([done != mean])):  # so that all processes end
            raise ConfigError(f"'{folder}' must be one folder that all processes share")
        return state

    def _teacher(
        self, train: LabelledFiles, sha256: str, device: torch.device, jobs: int
    ) -> Teacher | None:
        section, machine = self._pipeline.distill, self._machine
        if section is None:
            return None

        def progress(items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
            for item in machine.progress(items, total, label):
                if machine.stop.is_set():
                    raise KeyboardInterrupt
                yield item

        advice = f"lower distill.scale, {section.scale}, or take a smaller distill.backbone"
        with _memory_for("the teacher", advice):
            backbone = BackboneRef(section.backbone, section.weights, machine.weights_dir)
            loaded = backbone.load([section.layer])
            return prepare_teacher(
                section, loaded, train, sha256, self._folder, device, jobs, progress
            )

    def train(self) -> None:
        """Train to the end, or until told to stop."""
        trainer = self._trainer
        self._tell_what_is_left()
        if rank() == 0:  # what a run that was killed after its checkpoint had not written
            self._write_outputs()
        while not trainer.finished and not self._stopping():
            if not self._epoch():
                break

    def outcome(self) -> Outcome:
        """Return what there is now."""
        weights = self._folder / files.WEIGHTS
        found = weights if weights.exists() else None
        return Outcome(self._folder, found, self._trainer.history, self._trainer.finished)

    def _tell_what_is_left(self) -> None:
        trainer, machine = self._trainer, self._machine
        epoch, step = trainer.position.epoch, trainer.position.step
        epochs = plural(self._pipeline.training.epochs, "epoch")
        steps = plural(trainer.steps, "step")
        if trainer.finished:
            machine.tell(f"finished before: {epochs} of {steps}; run: {machine.folder}")
            return
        if epoch or step:
            machine.tell(f"going on in epoch {epoch + 1} after {step} of {steps}")
        machine.tell(f"{epochs} of {steps} in {trainer.precision}; run: {machine.folder}")

    def _epoch(self) -> bool:
        """Run the rest of an epoch; False if it was stopped before its end."""
        trainer, machine, section = self._trainer, self._machine, self._pipeline.training
        label = f"epoch {trainer.position.epoch + 1} at {trainer.side} pixels"
        left = trainer.steps - trainer.position.step
        for step in machine.progress(trainer.train_epoch(), left, label):
            if step == trainer.steps:
                break
            stopping = self._stopping()
            if stopping or step % section.checkpoint_every == 0:
                self._write_checkpoint()
            if stopping:
                return False
        line = trainer.finish_epoch()
        self._write_checkpoint()
        if rank() == 0:
            self._write_outputs()
        machine.tell(describe_epoch(line, section.epochs))
        return True

    def _stopping(self) -> bool:
        """Tell whether a process was asked to stop: then all do, after the same step."""
        return all_sums([self._machine.stop.is_set()]) != [0]

    def _write_checkpoint(self) -> None:
        if rank() == 0:
            known = {"identity": self._identity, "precision": self._trainer.precision}
            files.save_checkpoint(self._folder, {**known, **self._trainer.state()})

    def _write_outputs(self) -> None:
        """Write the history, and the weights if they are not those of its last epoch."""
        trainer = self._trainer
        files.write_history(self._folder, trainer.history, self._pipeline.training.epochs)
        if trainer.history and trainer.position.step == 0:
            about = describe_epochs(self._about, trainer.history)
            if not files.has_weights(self._folder, about):
                files.write_weights(self._folder, trainer.student.network, about)


def _identity(pipeline: PretrainingPipeline, machine: TrainingMachine, data_sha256: str) -> str:
    """Hash all that the loss curve depends on."""
    values = pipeline.model_dump(mode="json", exclude=_FREE)
    distill = pipeline.distill
    if distill is not None:
        # A file may have got other weights since, or another place.
        teacher = BackboneRef(distill.backbone, distill.weights, machine.weights_dir)
        values["distill"]["weights"] = teacher.weights_sha256()
    text = json.dumps([values, data_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_epoch(line: Metrics, epochs: int) -> str:
    """Describe a line of the metrics for people.

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
