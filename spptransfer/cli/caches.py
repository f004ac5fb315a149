"""Commands on feature caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import (
    CACHE_DIR,
    CacheDir,
    Compute,
    DataRoot,
    Folders,
    Overrides,
    WeightsDir,
    add_command,
    numbers,
)
from spptransfer.cli.output import Output, printable, short_path, table
from spptransfer.errors import CacheError, ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.cache.inventory import CacheInfo
    from spptransfer.cache.verify import Problem
    from spptransfer.experiment.preparation import Machine

CacheFile = Annotated[Path, typer.Argument(metavar="CACHE", help="A feature cache.")]

_SHOWN_PROBLEMS = 20

app = typer.Typer(
    help="List, describe, verify, export, merge and prune feature caches.",
    rich_markup_mode=None,
)


def list_caches(output: Output, cache_dir: CacheDir = CACHE_DIR) -> int:
    """Say what caches there are: rows, size, features, and whether they are complete."""
    from spptransfer.cache.inventory import list_caches as find_caches
    from spptransfer.files import human_bytes

    infos = find_caches(cache_dir)
    rows = [
        [info.path.name, info.rows, info.failed, human_bytes(info.bytes), _state(info), _what(info)]
        for info in infos
    ]
    if infos:
        output.say(table(rows, ["cache", "rows", "failed", "size", "state", "features"]))
    else:
        output.say(f"no caches in {short_path(cache_dir)}")
    return output.finish(caches=[_as_json(info) for info in infos])


def info(cache: CacheFile, output: Output) -> int:
    """Describe a cache: its spec, its rows, and why images failed."""
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.inventory import inspect

    found = inspect(cache)
    output.say(found.describe())
    readable = found.complete and not found.error
    failures = dict(FeatureCache.open(cache).failures) if readable else {}
    for id, error in failures.items():
        output.say(f"failed: {printable(id)}: {printable(error)}")
    return output.finish(
        not readable,
        rows={"ok": found.rows, "failed": found.failed, "reused": 0},
        cache=str(cache.resolve()),
        spec=None if found.spec is None else found.spec.to_dict(),
        failures=failures,
    )


def verify(
    cache: CacheFile,
    compute: Compute,
    output: Output,
    pipeline: Annotated[
        Path | None,
        typer.Option(metavar="PIPELINE.yaml", help="The pipeline file that it was made for."),
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Rows to extract again and compare.")] = 10,
    repair: Annotated[bool, typer.Option("--repair", help="Extract wrong rows anew.")] = False,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
) -> int:
    """Check a cache's structure, checksums, ids and numbers.

    With --pipeline also its images: all are hashed again, some are extracted again.
    """
    from spptransfer.cache.verify import verify as find_problems

    if pipeline is not None:
        from spptransfer.experiment.preparation import Machine

        machine = Machine(
            data_root, cache.parent, weights_dir=weights_dir, compute=compute.options()
        )
        return _verify_images(cache, pipeline, machine, output, sample=sample, mend=repair)
    if repair:
        raise ConfigError("--repair needs --pipeline PIPELINE.yaml: which images are they?")
    problems = find_problems(cache)
    _tell_problems(problems, cache, output)
    return _finish_verify(cache, problems, problems, output)


def _verify_images(
    cache: Path, pipeline: Path, machine: Machine, output: Output, *, sample: int, mend: bool
) -> int:
    """Check a cache together with the images that it was made from."""
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.verify import verify as find_problems
    from spptransfer.config import read_pipeline
    from spptransfer.experiment.preparation import prepare
    from spptransfer.extraction.repair import compare_sample, repair

    made_for = prepare(pipeline.stem, read_pipeline(pipeline), machine)
    FeatureCache.open(cache, made_for.wanted)
    images = (made_for.dataset, made_for.backbone, machine.compute)
    problems = find_problems(cache, made_for.dataset)
    problems += compare_sample(cache, problems, *images, sample=sample)
    _tell_problems(problems, cache, output)
    remaining = problems
    if mend and problems:
        done = repair(cache, problems, *images, progress=not output.quiet)
        remaining = find_problems(cache, made_for.dataset)
        output.say(f"repaired: {plural(done.added + done.changed, 'row')} extracted anew")
        _tell_problems(remaining, cache, output)
    return _finish_verify(cache, problems, remaining, output)


def _tell_problems(problems: Sequence[Problem], cache: Path, output: Output) -> None:
    for problem in problems[:_SHOWN_PROBLEMS]:
        output.complain(f"  {printable(problem)}")
    if len(problems) > _SHOWN_PROBLEMS:
        output.complain(f"  ... and {len(problems) - _SHOWN_PROBLEMS:,} more")
    found = plural(len(problems), "problem") if problems else "no problem"
    output.say(f"{short_path(cache)}: {found}")


def _finish_verify(
    cache: Path, found: Sequence[Problem], remaining: Sequence[Problem], output: Output
) -> int:
    return output.finish(
        bool(remaining),
        cache=str(cache.resolve()),
        problems=[{"id": problem.id, "what": problem.what} for problem in found],
        repaired=bool(found and not remaining),
    )


def export(
    cache: CacheFile,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What to write: .npz, .csv or .parquet.")
    ],
    output: Output,
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
) -> int:
    """Write features with their ids and labels for other programs."""
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.export import export as write

    count = write(
        FeatureCache.open(cache),
        file,
        None if ids is None else _read_ids(ids),
        levels=numbers("levels", levels, "6,3,1"),
        scales=numbers("scales", scales, "6,3,1"),
        combine=combine,  # type: ignore[arg-type]
    )
    output.say(f"{plural(count, 'row')}: {short_path(file)}")
    rows = {"ok": count, "failed": 0, "reused": 0}
    return output.finish(rows=rows, cache=str(cache.resolve()), file=str(file.resolve()))


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig", errors="surrogateescape")  # as file names are read
    except OSError as error:
        raise CacheError(f"cannot read the ids in '{path}': {error.strerror}") from error
    return [line for line in text.split("\n") if line]


def prune(
    folders: Folders,
    output: Output,
    pipelines: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PIPELINE.yaml",
            help="Pipeline files whose caches stay; without any, finished caches all stay.",
        ),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Do remove it; otherwise only say what would go.")
    ] = False,
    overrides: Overrides = None,
) -> int:
    """Remove unfinished caches, and caches that none of the pipeline files refers to.

    Values that --set replaces are replaced in all of the files.
    """
    from spptransfer.cache.inventory import prune as remove
    from spptransfer.experiment.preparation import Machine
    from spptransfer.files import human_bytes

    if overrides and not pipelines:
        raise ConfigError("--set needs a PIPELINE.yaml: whose values are they?")
    machine = Machine(**vars(folders))
    keep = [path for file in pipelines or () for path in _caches_of(file, machine, overrides or ())]
    removals = remove(folders.cache_dir, keep, dry_run=not delete, caches=bool(keep))
    for removal in removals:
        size = human_bytes(removal.bytes)
        output.say(f"{short_path(removal.path)} ({size}): {removal.reason}")
    total = human_bytes(sum(removal.bytes for removal in removals))
    what = f"removed {total}" if delete else f"{total} would be removed; --delete does so"
    output.say(what if removals else "nothing to remove")
    paths = [str(removal.path) for removal in removals]
    return output.finish(removed=paths if delete else [], removable=paths)


def _caches_of(path: Path, machine: Machine, overrides: Sequence[str]) -> list[Path]:
    """Return the caches of a pipeline file, in every precision where that is left to us."""
    from spptransfer.config import read_pipeline
    from spptransfer.experiment.preparation import alternatives, prepare

    pipeline = read_pipeline(path, overrides)
    if pipeline.grid is None:
        experiments = [prepare(path.stem, pipeline, machine)]
    else:
        from spptransfer.experiment.grid import prepare_grid

        experiments = [cell.experiment for cell in prepare_grid(path.stem, pipeline, machine).cells]
    caches = []
    for each in experiments:
        is_open = each.pipeline.features.precision == "auto"
        caches += [other.cache[0] for other in (alternatives(each) if is_open else [each])]
    return caches


def merge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The cache to write.")],
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="CACHE",
            help="Caches or shards of one fingerprint; FILE among them if it is there already.",
        ),
    ],
    output: Output,
) -> int:
    """Bring the rows of caches, made on different machines say, into one.

    Where they hold the same image they must agree.
    """
    from spptransfer.cache.merge import merge as bring_together

    merged = bring_together(file, sources)
    failed = len(merged.failures)
    output.say(f"{plural(len(merged), 'row')}, {failed:,} failed: {short_path(file)}")
    rows = {"ok": len(merged), "failed": failed, "reused": 0}
    return output.finish(rows=rows, cache=str(file.resolve()))


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


def _as_json(info: CacheInfo) -> dict[str, Any]:
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


add_command(app, list_caches, "What caches there are.", "list")
add_command(app, info, "What a cache holds, and which images failed.")
add_command(app, verify, "Look for damage, and repair it.")
add_command(app, export, "Write features as .npz, .csv or .parquet.")
add_command(app, prune, "Remove what no pipeline file needs.")
add_command(app, merge, "Bring caches together into one.")
