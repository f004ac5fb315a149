"""Entry point: one place turns what went wrong into one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spptransfer._version import __version__
from spptransfer.cli import caches, catalogues, pipelines, pretraining, scoring
from spptransfer.cli.output import DONE, INCOMPLETE, Output, on_one_line, warnings_shown
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
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Spatial-pyramid features from frozen networks, cached once; exact linear SVMs on top.",
)
for module in (pipelines, scoring, catalogues, pretraining):
    module.register(app)
app.add_typer(
    caches.app,
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
    try:
        with warnings_shown(), terminable():
            status = _invoke(arguments)
            sys.stdout.flush()
        return status
    except SPPTransferError as error:
        return _refuse(arguments, str(error), _status_of(error), **error.facts)
    except KeyboardInterrupt:
        return _refuse(arguments, "interrupted; everything finished so far is kept", INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _refuse(arguments, str(error.format_message()), WRONG_INPUT)


def _invoke(arguments: list[str]) -> int:
    """Parse and call; what typer's own `main` would catch is left to ours."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("spptransfer", arguments) as context:
            return int(command.invoke(context) or DONE)
    except typer.Exit as end:
        return int(end.exit_code)


def _status_of(error: SPPTransferError) -> int:
    # An extraction that was never imported cannot have been interrupted.
    extraction = sys.modules.get("spptransfer.extraction")
    interrupted = extraction is not None and isinstance(error, extraction.Interrupted)
    return INTERRUPTED if interrupted else WRONG_INPUT


def _refuse(arguments: Sequence[str], message: str, status: int, **facts: Any) -> int:
    line = on_one_line(message)
    print(f"spptransfer: {line}", file=sys.stderr)
    if "--json" in arguments:
        word = "interrupted" if status == INTERRUPTED else "error"
        Output(json=True).finish(status=word, message=line, **facts)
    return status
