"""Commands on feature caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    CACHE_DIR,
    CacheDir,
    DataRoot,
    Device,
    Json,
    Overrides,
    Quiet,
    Runtime,
    WeightsDir,
    numbers,
)
from spptransfer.cli.output import Output, printable, short_path, table
from spptransfer.errors import CacheError, ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.cache.inventory import CacheInfo
    from spptransfer.cache.verify import Problem
    from spptransfer.experiment import Experiment, Machine

CacheFile = Annotated[Path, typer.Argument(metavar="CACHE", help="A feature cache.")]
PipelineOption = Annotated[
    Path | None,
    typer.Option(
        "--pipeline", metavar="PIPELINE.yaml", help="The pipeline file that it was made for."
    ),
]

_SHOWN_PROBLEMS = 20

app = typer.Typer(
    help="List, describe, verify, export, merge and prune feature caches.",
    rich_markup_mode=None,
)


@app.command("list", short_help="What caches there are.")
def list_caches(cache_dir: CacheDir = CACHE_DIR, quiet: Quiet = False, json: Json = False) -> int:
    """Say what caches there are: rows, size, features, and whether they are complete."""
    from spptransfer.files import human_bytes
    from spptransfer.cache.inventory import list_caches as find_caches

    output = Output(quiet, json)
    infos = find_caches(cache_dir)
    rows = [
        [info.path.name, info.rows, info.failed, human_bytes(info.bytes), _state(info), _what(info)]
        for info in infos
    ]
    if infos:
        output.say(table(rows, ["cache", "rows", "failed", "size", "state", "features"]))
    else:
        output.say(f"no caches in {short_path(cache_dir)}")
    output.finish(status="ok", caches=[_as_json(info) for info in infos])
    return 0


@app.command(short_help="What a cache holds, and which images failed.")
def info(cache: CacheFile, quiet: Quiet = False, json: Json = False) -> int:
    """Describe a cache: its spec, its rows, and why images failed."""
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.inventory import inspect

    output = Output(quiet, json)
    found = inspect(cache)
    output.say(found.describe())
    readable = found.complete and not found.error
    failures = dict(FeatureCache.open(cache).failures) if readable else {}
    for id, error in failures.items():
        output.say(f"failed: {printable(id)}: {printable(error)}")
    output.finish(
        status="ok" if readable else "incomplete",
        rows={"ok": found.rows, "failed": found.failed, "reused": 0},
        cache=str(cache.resolve()),
        spec=None if found.spec is None else found.spec.to_dict(),
        failures=failures,
    )
    return 0 if readable else 1


@app.command(short_help="Look for damage, and repair it.")
def verify(
    cache: CacheFile,
    pipeline: PipelineOption = None,
    sample: Annotated[int, typer.Option(min=0, help="Rows to extract again and compare.")] = 10,
    repair: Annotated[bool, typer.Option("--repair", help="Extract wrong rows anew.")] = False,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    runtime: Runtime = "torch",
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Check a cache's structure, checksums, ids and numbers.

    With --pipeline also its images: all are hashed again, some are extracted again.
    """
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.verify import verify as find_problems
    from spptransfer.experiment import Machine

    output = Output(quiet, json)
    if repair and pipeline is None:
        raise ConfigError("--repair needs --pipeline PIPELINE.yaml: which images are they?")
    computing: dict[str, Any] = {"device": device, "runtime": runtime}
    machine = Machine(
        data_root=data_root, cache_dir=cache.parent, weights_dir=weights_dir, **computing
    )
    made_for = None if pipeline is None else _experiment(pipeline, machine)
    if made_for is None:
        problems = find_problems(cache)
    else:
        from spptransfer.extraction.repair import compare_sample
        from spptransfer.extraction.repair import repair as repair_cache

        FeatureCache.open(cache, made_for.wanted)
        images = (made_for.dataset, made_for.load_backbone)
        problems = find_problems(cache, made_for.dataset)
        problems += compare_sample(cache, problems, *images, sample=sample, **computing)
    _tell_problems(problems, cache, output)
    remaining = problems
    if repair and problems and made_for is not None:
        done = repair_cache(cache, problems, *images, **computing, progress=not quiet)
        remaining = find_problems(cache, made_for.dataset)
        output.say(f"repaired: {plural(done.added + done.changed, 'row')} extracted anew")
        _tell_problems(remaining, cache, output)
    output.finish(
        status="incomplete" if remaining else "ok",
        cache=str(cache.resolve()),
        problems=[{"id": problem.id, "what": problem.what} for problem in problems],
        repaired=bool(repair and problems and not remaining),
    )
    return 1 if remaining else 0


@app.command(short_help="Write features as .npz, .csv or .parquet.")
def export(
    cache: CacheFile,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What to write: .npz, .csv or .parquet.")
    ],
    ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file with an id per line.", show_default="all"),
    ] = None,
    levels: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Levels.", show_default="those stored")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(metavar="S,S,...", help="Scales.", show_default="those stored")
    ] = None,
    combine: Annotated[
        str, typer.Option(help="What becomes of several scales: concat, mean or max.")
    ] = "concat",
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Write features with their ids and labels for other programs."""
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.export import export as write

    output = Output(quiet, json)
    opened = FeatureCache.open(cache)
    count = write(
        opened,
        file,
        None if ids is None else _read_ids(ids),
        levels=numbers("levels", levels, "6,3,1"),
        scales=numbers("scales", scales, "6,3,1"),
        combine=combine,  # type: ignore[arg-type]
    )
    output.say(f"{plural(count, 'row')}: {short_path(file)}")
    output.finish(
        status="ok",
        rows={"ok": count, "failed": 0, "reused": 0},
        cache=str(cache.resolve()),
        file=str(file.resolve()),
    )
    return 0


@app.command(short_help="Remove what no pipeline file needs.")
def prune(
    pipelines: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PIPELINE.yaml",
            help="Pipeline files whose caches stay; without any, finished caches all stay.",
        ),
    ] = None,
    cache_dir: CacheDir = CACHE_DIR,
    delete: Annotated[
        bool, typer.Option("--delete", help="Do remove it; otherwise only say what would go.")
    ] = False,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Remove unfinished parts, and caches that none of the pipeline files refers to.

    Values that --set replaces are replaced in all of the files.
    """
    from spptransfer.files import human_bytes
    from spptransfer.cache.inventory import prune as remove
    from spptransfer.experiment import Machine

    output = Output(quiet, json)
    if overrides and not pipelines:
        raise ConfigError("--set needs a PIPELINE.yaml: whose values are they?")
    machine = Machine(data_root=data_root, cache_dir=cache_dir, weights_dir=weights_dir)
    keep = [
        path
        for pipeline in pipelines or ()
        for path in _caches_of(pipeline, machine, overrides or ())
    ]
    removals = remove(cache_dir, keep, dry_run=not delete, caches=bool(keep))
    for removal in removals:
        size = human_bytes(removal.bytes)
        output.say(f"{short_path(removal.path)} ({size}): {removal.reason}")
    total = human_bytes(sum(removal.bytes for removal in removals))
    if not removals:
        output.say("nothing to remove")
    elif delete:
        output.say(f"removed {total}")
    else:
        output.say(f"{total} would be removed; --delete does so")
    output.finish(
        status="ok",
        removed=[str(removal.path) for removal in removals] if delete else [],
        removable=[str(removal.path) for removal in removals],
    )
    return 0


@app.command(short_help="Bring caches together into one.")
def merge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The cache to write.")],
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="CACHE",
            help="Caches or parts of one fingerprint; FILE among them if it is there already.",
        ),
    ],
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Bring the rows of caches, made on different machines say, into one.

    Where they hold the same image they must agree.
    """
    from spptransfer.cache.merge import merge as bring_together

    output = Output(quiet, json)
    merged = bring_together(file, sources)
    failed = len(merged.failures)
    output.say(f"{plural(len(merged), 'row')}, {failed:,} failed: {short_path(file)}")
    output.finish(
        status="ok",
        rows={"ok": len(merged), "failed": failed, "reused": 0},
        cache=str(file.resolve()),
    )
    return 0


def _experiment(path: Path, machine: Machine) -> Experiment:
    from spptransfer.config import read_pipeline
    from spptransfer.experiment import prepare

    return prepare(path.stem, read_pipeline(path), machine)


def _caches_of(path: Path, machine: Machine, overrides: Sequence[str]) -> list[Path]:
    """Caches of a pipeline file; all that they may be where the precision is left to us."""
    from spptransfer.config import read_pipeline
    from spptransfer.experiment import prepare, prepare_grid
    from spptransfer.experiment.precision import alternatives

    pipeline = read_pipeline(path, overrides)
    if pipeline.grid is None:
        experiments = [prepare(path.stem, pipeline, machine)]
    else:
        experiments = [cell.experiment for cell in prepare_grid(path.stem, pipeline, machine).cells]
    return [
        each.cache[0]
        for experiment in experiments
        for each in (
            alternatives(experiment)
            if experiment.pipeline.features.precision == "auto"
            else [experiment]
        )
    ]


def _state(info: CacheInfo) -> str:
    if info.error:
        return "damaged"
    return "complete" if info.complete else "unfinished"


def _what(info: CacheInfo) -> str:
    if info.spec is None:
        return info.error
    spec = info.spec
    levels = f", levels {list(spec.levels)}" if spec.levels else ""
    return f"{info.dataset}: {spec.backbone} {spec.layer}, scales {list(spec.scales)}{levels}"


def _as_json(info: CacheInfo) -> dict[str, object]:
    return {
        "path": str(info.path.resolve()),
        "rows": info.rows,
        "failed": info.failed,
        "bytes": info.bytes,
        "state": _state(info),
        "dataset": info.dataset,
        "fingerprint": None if info.spec is None else info.spec.fingerprint,
        "error": info.error or None,
    }


def _tell_problems(problems: list[Problem], cache: Path, output: Output) -> None:
    for problem in problems[:_SHOWN_PROBLEMS]:
        output.complain(f"  {printable(problem)}")
    if len(problems) > _SHOWN_PROBLEMS:
        output.complain(f"  ... and {len(problems) - _SHOWN_PROBLEMS:,} more")
    found = plural(len(problems), "problem") if problems else "no problem"
    output.say(f"{short_path(cache)}: {found}")


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig", errors="surrogateescape")  # as file names are read
    except OSError as error:
        raise CacheError(f"cannot read the ids in '{path}': {error.strerror}") from error
    return [line for line in text.split("\n") if line]
