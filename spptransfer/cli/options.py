"""What commands share: options, singly and in groups, and how they print."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from spptransfer.errors import ConfigError
from spptransfer.files import expand_path

if TYPE_CHECKING:
    from spptransfer.runtimes import ComputeOptions

DONE, INCOMPLETE = 0, 1
_KEYS = ("status", "headline", "metrics", "rows", "run", "cache", "report", "model")

# ---- options ----


def add_command(
    app: typer.Typer,
    function: Callable[..., int],
    short_help: str,
    *examples: str,
    name: str | None = None,
) -> None:
    """Add a command; a parameter that is a dataclass of options stands for all of these."""
    hints = get_type_hints(function, include_extras=True)
    single: list[inspect.Parameter] = []
    grouped: list[inspect.Parameter] = []
    groups: dict[str, Mapping[str, Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        if dataclasses.is_dataclass(hints[parameter.name]):
            group: Any = hints[parameter.name]
            groups[parameter.name] = inspect.signature(group).parameters
            hints |= get_type_hints(group, include_extras=True)
            grouped += groups[parameter.name].values()
        else:
            single.append(parameter)

    def call(**given: Any) -> int:
        given = {option: _expanded(value) for option, value in given.items()}
        for name, options in groups.items():
            given[name] = hints[name](**{option: given.pop(option) for option in options})
        return function(**given)

    call.__name__, call.__doc__, call.__annotations__ = function.__name__, function.__doc__, {}
    parameters = [
        each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for each in single + grouped
    ]
    vars(call)["__signature__"] = inspect.Signature(parameters)
    lines = "\n".join(f"  spptransfer {example}" for example in examples)
    # Click leaves the lines of a paragraph that begins with this character as they are.
    app.command(name, short_help=short_help, epilog=f"\b\nExamples:\n{lines}")(call)


def _expanded(value: Any) -> Any:
    """Replace ``~`` and environment variables in paths, which not every shell does everywhere."""
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return expand_path(value) if isinstance(value, Path) else value


def choice(help: str, default: str | None = None, **given: Any) -> Any:
    """Declare an option; `default` says in words what it is where it is not given."""
    return typer.Option(help=help, show_default=default or True, **given)


_PIPELINE = typer.Argument(
    metavar="PIPELINE", help="A pipeline file, or the name of a shipped one.", show_default=False
)
PipelineFile = Annotated[Path, _PIPELINE]
PipelineOrNone = Annotated[Path | None, _PIPELINE]
DataRoot = Annotated[Path | None, choice("Folder in which datasets are looked for.", "data")]
CacheDir = Annotated[Path, choice("Folder of feature caches.")]
RunsDir = Annotated[Path, choice("Folder in which runs land.")]
WeightsDir = Annotated[
    Path | None, choice("Folder of official weights.", "the user's cache folder")
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A model file, the folder of a run, or of runs for the latest."
    ),
]
Weights = Annotated[
    Path | None,
    choice("Where the backbone's weights are now.", "where they were in training", metavar="FILE"),
]
Device = Annotated[str, choice("auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, choice("Threads of the network.", "one per processor", min=1)]

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
    runtime: Annotated[str, choice("Who computes maps: auto, torch, onnxruntime or openvino.")] = (
        "auto"
    )
    threads: Threads = None

    def options(self) -> ComputeOptions:
        """Return them as the library takes them."""
        from spptransfer.runtimes import ComputeOptions

        return ComputeOptions(**vars(self))


@dataclass(frozen=True)
class ComputeMany(Compute):
    """The same for many images."""

    read_processes: Annotated[
        int, choice("Processes that read images for a GPU; 0: threads.", min=0)
    ] = 0


def numbers(option: str, text: str | None, example: str) -> tuple[int, ...] | None:
    """Read an option that holds whole numbers between commas; None where it is not given."""
    if text is None:
        return None
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise ConfigError(f"--{option}: '{text}' must be numbers, as {example}") from None


# ---- output ----


@dataclass(frozen=True)
class Output:
    """Where a command's words go."""

    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors and warnings alone.")] = False
    json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False

    def say(self, text: str = "") -> None:
        """Print a line for people; next to JSON they read it on the error stream."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def complain(self, text: str) -> None:
        """Print a line about something that failed, which `quiet` does not silence."""
        if self.quiet:
            print(text, file=sys.stderr, flush=True)
        else:
            self.say(text)

    def emit(self, values: Any) -> None:
        """Print a line of JSON before the last one."""
        print(json.dumps(values, default=str), flush=True)

    def finish(self, incomplete: bool = False, **values: Any) -> int:
        """Print the last line of JSON, if it was asked for, and return the exit status."""
        if self.json:
            known = {"status": "incomplete" if incomplete else "ok"}
            self.emit({**dict.fromkeys(_KEYS), **known, **values})
        return INCOMPLETE if incomplete else DONE

    def tell_failures(
        self,
        failures: Mapping[str, str],
        shown: int = 10,
        hint: str = "; `spptransfer cache info` lists all",
    ) -> None:
        """List the first images that failed, and count the others."""
        for id, error in itertools.islice(failures.items(), shown):
            self.complain(f"  failed: {printable(id)}: {printable(error)}")
        if len(failures) > shown:
            self.complain(f"  ... and {len(failures) - shown:,} more{hint}")


class _Lines(logging.Handler):
    """Hands every record on as one line."""

    def __init__(self, say: Callable[[str], object], level: int) -> None:
        super().__init__(level)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(printable(record.getMessage()))


@contextlib.contextmanager
def logged(name: str, level: int, say: Callable[[str], object]) -> Iterator[None]:
    """Say what a logger is told from a level on."""
    logger, handler = logging.getLogger(name), _Lines(say, level)
    before = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), level))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def list_shipped(command: str, output: Output) -> int:
    """List the shipped pipeline files for a command, each with what its first comment says."""
    from spptransfer.sections import shipped

    rows = []
    for name, file in shipped().items():
        if name.startswith("pretrain-") == (command == "pretrain"):
            lines = itertools.takewhile(lambda line: line[:2] == "# ", file.open(encoding="utf-8"))
            words = " ".join(line[2:].strip() for line in lines)
            rows.append([name, re.split(r"[.:;] ", words)[0].rstrip(".")])
    output.say(table(rows, ["PIPELINE", "what it is"]))
    output.say(f"\n`spptransfer {command} PIPELINE` takes one of them or a file of your own;")
    output.say("`spptransfer init PIPELINE` writes a copy to edit.")
    return output.finish(pipelines=[name for name, _ in rows])


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Lay rows out in columns, numbers to the right.

    Examples
    --------
    >>> print(table([["alexnet", 2.5]], ["name", "size"]))
    name     size
    alexnet   2.5
    """
    columns = []
    for name, *values in zip(header, *rows, strict=True):
        cells = [name, *map(_cell, values)]
        to_right = values and all(type(value) in (int, float, type(None)) for value in values)
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if to_right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else printable(value)


def printable(name: Any) -> str:
    r"""Write text as a terminal can show it on one line, whatever a file is called.

    Examples
    --------
    >>> printable("two\nlines"), printable("caf\xe9"), printable("\udcff")
    ('two\\nlines', 'café', '\\udcff')
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(name)
    )


def on_one_line(message: str) -> str:
    r"""Write a message without line breaks, with nothing that a terminal would obey.

    Examples
    --------
    >>> on_one_line("a \n  b")
    'a b'
    """
    return printable(" ".join(message.split()))


def short_path(path: Path) -> str:
    """Write a path as short as it can be told from here."""
    path, here = path.resolve(), Path.cwd()
    return printable(path.relative_to(here) if path.is_relative_to(here) else path)


def named_run(run: Path, runs_dir: Path) -> Path:
    """Return a folder that is there, or the one of that name among the runs."""
    return runs_dir / run if (runs_dir / run).exists() and not run.exists() else run


def latest(folder: Path, file: str, output: Output) -> Path:
    """Return the latest run in a folder of runs, or what was named if it is no such folder."""
    if (folder / file).exists():
        return folder
    runs = sorted(folder.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime)
    if not runs:
        return folder
    output.say(f"the latest run: {short_path(runs[-1].parent)}")
    return runs[-1].parent
