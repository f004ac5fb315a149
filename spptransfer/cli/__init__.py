"""The command line: parse, call, print; no logic of its own.

One place turns what went wrong into one line and an exit status.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spptransfer._version import __version__
from spptransfer.cli import (
    auditing,
    caches,
    combining,
    detecting,
    exporting,
    pipelines,
    predicting,
    pretraining,
)
from spptransfer.cli.options import DONE, INCOMPLETE, Output, add_command, logged, on_one_line
from spptransfer.cli.process import checked_streams, terminable
from spptransfer.errors import ConfigError, OutputError, SPPTransferError, suggestion

WRONG_INPUT, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """A group of commands that shows its help when it gets none, and the nearest to a wrong one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find the command."""
        if args[0] not in self.commands:
            raise ConfigError(f"unknown command '{args[0]}'; {suggestion(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Spatial-pyramid features from frozen networks, cached once; exact linear SVMs on top.",
)
cache_app = typer.Typer(
    help="List, describe, verify, export, merge and prune feature caches.", rich_markup_mode=None
)
# Each with what it does, in short, and examples.
COMMANDS: tuple[tuple[Any, ...], ...] = (
    (
        pipelines.run,
        "From images to results, a model and a report.",
        "run your_images --set dataset.root=photos",
        "run mine.yaml --set features.scales=[224,320] --device cuda",
    ),
    (pipelines.init, "Write a copy of a shipped pipeline file.", "init your_images"),
    (
        pipelines.extract,
        "Fill the feature cache.",
        "extract mine.yaml",
        "extract mine.yaml --shard 2/8",
    ),
    (
        pipelines.train,
        "Like run, from a cache that is there already.",
        "train mine.yaml --set classifier.C=[1,10]",
    ),
    (
        predicting.predict,
        "Score new images with a saved model.",
        "predict runs path/to/new/images",
        "predict runs/mine-20261122-172418 a.jpg b.jpg --json",
        "predict runs photos --format csv --output scores.csv",
    ),
    (
        exporting.export,
        "Write a saved model as one ONNX file.",
        "export runs --onnx classifier.onnx",
    ),
    (
        pipelines.report,
        "Write the report of a run anew, or its table.",
        "report runs/mine-20261122-172418",
        "report runs/mine-20261122-172418 --format latex",
    ),
    (
        detecting.proposals,
        "Measure how many objects a pipeline's windows can find.",
        "proposals detect_demo",
        "proposals mine.yaml --set detection.proposals=edge_boxes",
    ),
    (
        detecting.detect,
        "Find objects in new images with a saved detector.",
        "detect runs path/to/new/images --draw drawn",
        "detect runs/mine-20261122-172418 a.jpg b.jpg --json",
    ),
    (
        combining.combine,
        "Combine the models of finished runs.",
        "combine runs/alexnet-20261122-172418 runs/vgg16-20261122-180211",
        "combine runs/alexnet-20261122-172418 runs/vgg16-20261122-180211 --concat",
    ),
    (
        combining.compare,
        "Compare finished runs: what differs, and who gains what.",
        "compare runs/alexnet-20261122-172418 runs/vgg16-20261122-180211",
        "compare alexnet-20261122-172418 vgg16-20261122-180211 --format latex --html compared.html",
    ),
    (
        auditing.audit,
        "Find near-copies, doubtful labels and outliers.",
        "audit your_images --set dataset.root=photos",
        "audit mine.yaml --output checked",
    ),
    (
        caches.backbones,
        "List backbones, their layers and weights.",
        "backbones",
        "backbones alexnet",
        "backbones 'timm/*dinov2*'",
    ),
    (
        caches.datasets,
        "List datasets, or fetch one.",
        "datasets --data-root data",
        "datasets --fetch caltech101",
    ),
    (
        pretraining.pretrain,
        "Train a network of the paper from random weights.",
        "pretrain pretrain-zf5-64 --data-root path/to/data",
    ),
    (
        pretraining.evaluate_backbone,
        "Measure a trained network's errors on labelled images.",
        "evaluate-backbone zf5-64 --weights w.safetensors --data path/to/data",
    ),
)
CACHE_COMMANDS: tuple[tuple[Any, ...], ...] = (
    (caches.info, "What a cache holds, and which images failed.", "cache info cache/mine.h5"),
    (
        caches.verify,
        "Look for damage, and repair it.",
        "cache verify cache/mine.h5",
        "cache verify cache/mine.h5 --pipeline mine.yaml --repair",
    ),
    (
        caches.export,
        "Write features as .npz, .csv, .parquet or .tsv.",
        "cache export cache/mine.h5 features.npz --levels 6,1",
        "cache export cache/mine.h5 projector/tensors.tsv --levels 1",
    ),
    (caches.prune, "Remove what no pipeline file needs.", "cache prune mine.yaml --delete"),
    (
        caches.merge,
        "Bring caches together into one.",
        "cache merge cache/all.h5 cache/a.h5 cache/b.h5",
    ),
)
for _command in COMMANDS:
    add_command(app, *_command)
add_command(cache_app, caches.list_caches, "What caches there are.", "cache list", name="list")
for _command in CACHE_COMMANDS:
    add_command(cache_app, *_command)
app.add_typer(
    cache_app,
    name="cache",
    cls=Commands,
    short_help="List, verify, export, merge and prune feature caches.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spptransfer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with checked_streams():
        try:
            return _run(arguments)
        except BrokenPipeError:  # whoever read our output has left
            return INCOMPLETE
        except OutputError as error:  # in the midst of telling of another one
            return _refuse(arguments, str(error), WRONG_INPUT)


def _run(arguments: list[str]) -> int:
    """Do what the arguments ask for, or tell on one line why not."""
    command = typer.main.get_command(app)
    if "_SPPTRANSFER_COMPLETE" in os.environ:  # a shell asks how a line can go on
        command.main(arguments, "spptransfer")
    try:
        # What typer's own `main` would catch is left to ours.
        with (
            logged("spptransfer", logging.WARNING, _warn),
            terminable(),
            command.make_context("spptransfer", arguments) as context,
        ):
            status = int(command.invoke(context) or DONE)
            sys.stdout.flush()
        return status
    except typer.Exit as end:
        sys.stdout.flush()
        return int(end.exit_code)
    except SPPTransferError as error:
        # An extraction that was never imported cannot have been interrupted.
        extraction = sys.modules.get("spptransfer.extraction")
        interrupted = extraction is not None and isinstance(error, extraction.Interrupted)
        status = INTERRUPTED if interrupted else WRONG_INPUT
        return _refuse(arguments, str(error), status, **error.facts)
    except KeyboardInterrupt as interrupt:
        kept = "interrupted; everything finished so far is kept"
        return _refuse(arguments, str(interrupt) or kept, INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _refuse(arguments, str(error.format_message()), WRONG_INPUT)


def _warn(line: str) -> None:
    print(f"spptransfer: {on_one_line(line)}", file=sys.stderr, flush=True)


def _refuse(arguments: Sequence[str], message: str, status: int, **facts: Any) -> int:
    _warn(message)
    if "--json" in arguments:
        word = "interrupted" if status == INTERRUPTED else "error"
        Output(json=True).finish(status=word, message=on_one_line(message), **facts)
    return status
