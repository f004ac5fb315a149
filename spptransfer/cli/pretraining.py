"""The command that trains a network of the paper from random weights."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    RUNS_DIR,
    DataRoot,
    Device,
    Json,
    PipelineFile,
    Quiet,
    TrainingOverrides,
    WeightsDir,
)
from spptransfer.cli.output import Output, short_path
from spptransfer.cli.signals import stopping_training

if TYPE_CHECKING:
    from spptransfer.pretraining.run import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(short_help="Train a network of the paper from random weights.")(pretrain)


def pretrain(
    pipeline: PipelineFile,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run.", show_default="runs/ and the pipeline file's name"),
    ] = None,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the network on a CPU.", show_default="one per processor"
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads that prepare images.", show_default="as many as are worth it"
        ),
    ] = None,
    overrides: TrainingOverrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Train a network of the paper from random weights on a folder of class folders.

    Interrupted or killed, the same command goes on where its last checkpoint stands.
    """
    from spptransfer.pretraining.config import read_pipeline
    from spptransfer.pretraining.distributed import team_of_environment
    from spptransfer.pretraining.machine import Machine
    from spptransfer.pretraining.run import pretrain as run

    leads = team_of_environment().leads
    output = Output(quiet or not leads, json and leads)
    settings = read_pipeline(pipeline, overrides or ())
    machine = Machine(
        folder=out or RUNS_DIR / pipeline.stem,
        data_root=data_root,
        weights_dir=weights_dir,
        device=device,
        jobs=jobs,
        threads=threads,
        progress=_bar(output.quiet),
        tell=output.say,
    )
    with stopping_training(machine.stop), contextlib.nullcontext() if leads else _silent():
        outcome = run(settings, machine)
    if not outcome.finished:
        raise KeyboardInterrupt
    return _tell(outcome, output)


def _bar(quiet: bool) -> Any:
    """Progress bars on a terminal's error stream."""
    from tqdm import tqdm

    def progress(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        hidden = quiet or not sys.stderr.isatty()
        return tqdm(items, desc=label, total=total, disable=hidden, leave=False)

    return progress


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Leave warnings to the process that speaks for all."""
    library = logging.getLogger("spptransfer")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)


def _tell(outcome: Outcome, output: Output) -> int:
    last = outcome.history[-1]
    if outcome.weights is not None:
        output.say(f"weights: {short_path(outcome.weights)}")
    names = ("loss", "val_top1", "val_top5")
    output.finish(
        status="ok",
        headline={"metric": "val_top1", "value": last["val_top1"], "std": None},
        metrics={name: last[name] for name in names},
        run=str(outcome.folder.resolve()),
        model=str(outcome.weights.resolve()) if outcome.weights else None,
    )
    return 0
