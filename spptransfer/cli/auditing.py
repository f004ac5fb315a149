"""The command that looks for near-copies, doubtful labels and outliers."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from spptransfer.cli.options import (
    Folders,
    Output,
    Overrides,
    PipelineFile,
    choice,
    logged,
    printable,
    short_path,
    table,
)
from spptransfer.cli.process import interruptible
from spptransfer.errors import ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.experiment.auditing import Audit

SHOWN = 8


def audit(
    pipeline: PipelineFile,
    folders: Folders,
    words: Output,
    output: Annotated[
        Path | None, choice("Folder to write.", "audit-PIPELINE", metavar="DIR")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Find near-copies, doubtful labels and outliers, from the cache alone.

    Pairs of images whose features nearly agree, those across training and test first; labels
    that classifiers trained without the image contradict most; images far from all others of
    their class. As a page with the images side by side, and as CSV files.
    """
    from spptransfer.experiment import Grid, Machine, prepare_file
    from spptransfer.experiment import auditing as audits
    from spptransfer.experiment.preparation import STEPS, plain_name
    from spptransfer.experiment.results import count_rows
    from spptransfer.report.audit import write_audit_page

    machine = Machine(**vars(folders), progress=not words.quiet)
    prepared = prepare_file(pipeline, machine, overrides or ())
    if isinstance(prepared, Grid):
        raise ConfigError(f"'{prepared.name}' has a grid; give the pipeline of one run")
    folder = output or Path(f"audit-{plain_name(prepared.name)}")
    command = shlex.join(["spptransfer", *sys.argv[1:]])
    with (
        interruptible("interrupted; what was not written yet is not kept"),
        logged(STEPS, logging.INFO, words.say),
    ):
        found = audits.audit(prepared)
        tables = audits.write_tables(found, folder)
        page = write_audit_page(found, prepared.name, command, folder / "audit.html")
    _tell(found, words)
    words.say("\n" + "\n".join(short_path(path) for path in (page, *tables)))
    failures, total = found.extraction.failures, len(prepared.dataset)
    words.tell_failures(failures)
    near, across = found.near_copies, int((found.near_copies.across > 0).sum())
    numbers = {
        "near_copies": len(near.first),
        "near_copies_across_training_and_test": across,
        "contradicted_labels": int((found.contradictions > 0).sum()),
    }
    return words.finish(
        bool(failures),
        rows=count_rows(total, len(failures), found.extraction.reused),
        cache=str(found.extraction.path.resolve()),
        report=str(page.resolve()),
        audit={**numbers, "files": [str(path.resolve()) for path in tables]},
    )


def _tell(found: Audit, words: Output) -> None:
    """Print the beginning of each list."""
    ids, near = found.dataset.ids, found.near_copies
    across = int((near.across > 0).sum())
    words.say(f"near-copies: {plural(len(near.first), 'pair')}, {across:,} across train and test")
    columns = (column[:SHOWN].tolist() for column in near)
    pairs: list[list[Any]] = [
        [f"{distance:.4f}", "yes" if splits else "", ids[one], ids[other]]
        for one, other, distance, splits in zip(*columns, strict=True)
    ]
    _list(words, pairs, ["distance", "across", "image", "and"])
    if found.dataset.labelled:
        contradicted = int((found.contradictions > 0).sum())
        share = contradicted / len(ids)
        words.say(
            f"\nlabels: {contradicted:,} of {len(ids):,} ({share:.1%}) contradicted by classifiers "
            "that were not trained on them"
        )
        chosen = [i for i in found.doubtful[:SHOWN].tolist() if found.contradictions[i] > 0]
        rows = [
            [f"{found.contradictions[i]:.2f}", found.label(i), found.doubt(i), ids[i]]
            for i in chosen
        ]
        _list(words, rows, ["by", "label", "they say", "image"])
    words.say("\noutliers, by the distance to the nearest images, in medians:")
    rows = [[f"{found.ratios[i]:.2f}", ids[i]] for i in found.outliers[:SHOWN].tolist()]
    _list(words, rows, ["medians", "image"])


def _list(words: Output, rows: list[list[Any]], header: list[str]) -> None:
    if rows:
        lines = table([[printable(cell) for cell in row] for row in rows], header)
        words.say("\n".join(f"  {line}" for line in lines.splitlines()))
