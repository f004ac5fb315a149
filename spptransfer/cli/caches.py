"""Commands on feature caches."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="List, describe, verify, export, merge and prune feature caches.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
