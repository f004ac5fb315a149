"""Options that several commands share, singly and in groups."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from spptransfer.errors import ConfigError

if TYPE_CHECKING:
    from spptransfer.runtimes import ComputeOptions


def add_command(
    app: typer.Typer, function: Callable[..., int], short_help: str, name: str | None = None
) -> None:
    """Add a command; a parameter that is a dataclass of options stands for all of these."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {
        n: hint for n, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    given_by = inspect.signature(function).parameters.values()
    for parameter in sorted(given_by, key=lambda parameter: parameter.name in groups):
        group = groups.get(parameter.name)
        of_group = {} if group is None else get_type_hints(group, include_extras=True)
        single = [parameter] if group is None else inspect.signature(group).parameters.values()
        parameters += [
            each.replace(
                annotation={**hints, **of_group}[each.name], kind=inspect.Parameter.KEYWORD_ONLY
            )
            for each in single
        ]

    def call(**given: Any) -> int:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            given[name] = group(**{field: given.pop(field) for field in fields})
        return function(**given)

    call.__name__, call.__doc__, call.__annotations__ = function.__name__, function.__doc__, {}
    vars(call)["__signature__"] = inspect.Signature(parameters)
    app.command(name, short_help=short_help)(call)


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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]

CACHE_DIR = Path("cache")
RUNS_DIR = Path("runs")


def _replacing(example: str) -> Any:
    help = f"Replace a value of the pipeline file, as {example}."
    return typer.Option("--set", metavar="KEY=VALUE", help=help, show_default=False)


Overrides = Annotated[list[str] | None, _replacing("features.scales=[224,320]")]
TrainingOverrides = Annotated[list[str] | None, _replacing("training.epochs=90")]


@dataclass(frozen=True)
class Folders:
    """Where data, caches and weights lie."""

    data_root: DataRoot = None
    cache_dir: CacheDir = CACHE_DIR
    weights_dir: WeightsDir = None


@dataclass(frozen=True)
class Compute:
    """What computes a network."""

    device: Device = "auto"
    runtime: Annotated[
        str, typer.Option(help="Who computes maps: auto, torch, onnxruntime or openvino.")
    ] = "auto"
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="one per processor")
    ] = None

    def options(self) -> ComputeOptions:
        """Return them as the library takes them."""
        from spptransfer.runtimes import ComputeOptions

        return ComputeOptions(**vars(self))


@dataclass(frozen=True)
class ComputeMany(Compute):
    """The same for many images."""

    read_processes: Annotated[
        int, typer.Option(min=0, help="Processes that read images for a GPU; 0: threads.")
    ] = 0


def numbers(option: str, text: str | None, example: str) -> tuple[int, ...] | None:
    """Read an option that holds whole numbers between commas; None where it is not given."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"--{option}: '{text}' must be numbers, as {example}") from None
