"""Options that several commands share, and how such values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spptransfer.errors import ConfigError

PipelineFile = Annotated[
    Path, typer.Argument(metavar="PIPELINE.yaml", help="Pipeline file.", show_default=False)
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder in which datasets are looked for.", show_default="data"),
]
CacheDir = Annotated[Path, typer.Option(help="Folder of feature caches.")]
RunsDir = Annotated[Path, typer.Option(help="Folder in which runs land.")]
WeightsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of official weights.", show_default="the user's cache folder"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Runtime = Annotated[
    str,
    typer.Option(help="Who computes maps on a CPU: torch, openvino or onnxruntime."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes.", show_default="a thread per processor"),
]
Threads = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Parallel threads.", show_default="one per processor"),
]


def _replacing(example: str) -> Any:
    help = f"Replace a value of the pipeline file, as {example}."
    return typer.Option("--set", metavar="KEY=VALUE", help=help, show_default=False)


Overrides = Annotated[list[str] | None, _replacing("features.scales=[224,320]")]
TrainingOverrides = Annotated[list[str] | None, _replacing("training.epochs=90")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]

CACHE_DIR = Path("cache")
RUNS_DIR = Path("runs")


def numbers(option: str, text: str | None, example: str) -> tuple[int, ...] | None:
    """Read an option that holds whole numbers between commas; None where it is not given."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"--{option}: '{text}' must be numbers, as {example}") from None
