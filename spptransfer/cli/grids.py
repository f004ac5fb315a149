"""The commands on a pipeline file that holds a grid: a table of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer.cli.output import Output, counts, printable, short_path, tell_failures
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.config import Pipeline
    from spptransfer.experiment import Grid, Machine
    from spptransfer.extraction import Extraction


def run(
    name: str,
    pipeline: Pipeline,
    machine: Machine,
    output: Output,
    command: str,
    *,
    from_caches: bool = False,
) -> int:
    """Train every cell of a table and print it; gives the exit status."""
    from spptransfer.experiment import run_grid
    from spptransfer.report.grid import grid_table, shown_metrics

    grid = _prepare(name, pipeline, machine, output)
    result = run_grid(grid, command, output.tell, from_caches=from_caches)
    results = result.results
    for metric in shown_metrics(results):
        output.say()
        output.say(grid_table(results, metric))
    output.say()
    output.say(f"table: {short_path(result.folder / 'results.json')}")
    output.say(f"report: {short_path(result.report)}")
    failures = {row["id"]: row["error"] for row in results["images"]["failures"]}
    tell_failures(failures, output)
    total = results["images"]["total"]
    output.finish(
        status="incomplete" if failures else "ok",
        metrics={
            f"{cell['row']}, {cell['column']}": cell["value"]
            for cell in results["cells"]
            if not cell["missing"]
        },
        rows=_rows(total, len(failures), result.extractions),
        run=str(result.folder.resolve()),
        report=str(result.report.resolve()),
    )
    return 1 if failures else 0


def extract(name: str, pipeline: Pipeline, machine: Machine, output: Output) -> int:
    """Fill the caches of all cells and say what became of the images; gives the exit status."""
    from spptransfer.experiment import extract_grid

    grid = _prepare(name, pipeline, machine, output)
    extractions = extract_grid(grid, output.tell)
    total = max(len(cell.experiment.dataset) for cell in grid.possible)
    failures: dict[str, str] = {}
    for extraction in extractions:
        output.say(f"{counts(total, extraction)}: {short_path(extraction.path)}")
        failures |= extraction.failures
    tell_failures(failures, output)
    output.finish(
        status="incomplete" if failures else "ok",
        rows=_rows(total, len(failures), extractions),
        cache=str(Path(machine.cache_dir).resolve()),
    )
    return 1 if failures else 0


def _prepare(name: str, pipeline: Pipeline, machine: Machine, output: Output) -> Grid:
    """Check the whole table against this machine, and say what is about to happen."""
    from spptransfer.experiment import prepare_grid

    grid = prepare_grid(name, pipeline, machine)
    dataset = grid.possible[0].experiment.dataset
    section = grid.section
    output.say(
        f"{printable(name)}: {plural(len(dataset), 'image')} of {dataset.name}; a table of "
        f"{plural(len(section.rows), 'row')} and {plural(len(section.columns), 'column')}, "
        f"{len(grid.possible)} of {len(grid.cells)} cells can be computed"
    )
    for reason in dict.fromkeys(cell.missing for cell in grid.cells if cell.missing):
        output.say(f"  {printable(reason)}")
    return grid


def _rows(total: int, failed: int, extractions: list[Extraction]) -> dict[str, Any]:
    """Images by what became of them; reused are those that no cache lacked."""
    ok = total - failed
    reused = min(ok, *(extraction.reused for extraction in extractions))
    return {"ok": ok, "failed": failed, "reused": reused}
