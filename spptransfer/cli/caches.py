"""Commands on what there is: feature caches, backbones, datasets."""

from __future__ import annotations

import dataclasses
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
    Output,
    Overrides,
    WeightsDir,
    choice,
    numbers,
    printable,
    short_path,
    table,
)
from spptransfer.errors import CacheError, ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.backbones import BackboneInfo
    from spptransfer.cache.inventory import CacheInfo

CacheFile = Annotated[Path, typer.Argument(metavar="CACHE", help="A feature cache.")]

_SHOWN_PROBLEMS = 20


def list_caches(output: Output, cache_dir: CacheDir = CACHE_DIR) -> int:
    """Say what caches there are: rows, size, features, and whether they are complete."""
    from spptransfer.cache.inventory import list_caches as find_caches
    from spptransfer.files import human_bytes

    rows, told = [], []
    for info in find_caches(cache_dir):
        state = "damaged" if info.error else "complete" if info.complete else "unfinished"
        counts = (info.rows, info.failed)
        rows.append([info.path.name, *counts, human_bytes(info.bytes), state, _what(info)])
        told.append(
            {
                "path": str(info.path.resolve()),
                **{name: getattr(info, name) for name in ("rows", "failed", "bytes", "dataset")},
                "state": state,
                "fingerprint": None if info.spec is None else info.spec.fingerprint,
                "error": info.error or None,
            }
        )
    if rows:
        output.say(table(rows, ["cache", "rows", "failed", "size", "state", "features"]))
    else:
        output.say(f"no caches in {short_path(cache_dir)}")
    return output.finish(caches=told)


def _what(info: CacheInfo) -> str:
    spec = info.spec
    if spec is None:
        return info.error
    levels = f", levels {list(spec.levels)}" if spec.levels else ""
    return f"{info.dataset}: {spec.origin}, scales {list(spec.scales)}{levels}"


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
        choice("The pipeline file that it was made for.", metavar="PIPELINE"),
    ] = None,
    sample: Annotated[int, choice("Rows to extract again and compare.", min=0)] = 10,
    repair: Annotated[bool, typer.Option("--repair", help="Extract wrong rows anew.")] = False,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
    overrides: Overrides = None,
) -> int:
    """Check a cache's structure, checksums, ids and numbers.

    With --pipeline also its images: all are hashed again, some are extracted again.
    """
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.verify import verify as find_problems

    dataset = None
    if pipeline is not None:
        from spptransfer.experiment import Machine, prepare_file
        from spptransfer.extraction import compare_sample
        from spptransfer.extraction import repair as mend

        machine = Machine(
            data_root, cache.parent, weights_dir=weights_dir, compute=compute.options()
        )
        experiments = prepare_file(pipeline, machine, overrides or ()).experiments
        mine = [each for each in experiments if each.cache[0].resolve() == cache.resolve()]
        made_for = (mine or experiments)[0]
        FeatureCache.open(cache, made_for.wanted)
        dataset = made_for.dataset
        images = (dataset, made_for.backbone, machine.compute)
    elif repair or overrides:
        option, what = (
            ("--repair", "which images are they") if repair else ("--set", "whose values are they")
        )
        raise ConfigError(f"{option} needs --pipeline PIPELINE: {what}?")
    problems = remaining = find_problems(cache, dataset)
    if dataset is not None:
        problems += compare_sample(cache, problems, *images, sample=sample)
    _tell_problems(problems, cache, output)
    if repair and problems:
        done = mend(cache, problems, *images, progress=not output.quiet)
        output.say(f"repaired: {plural(done.added + done.changed, 'row')} extracted anew")
        remaining = find_problems(cache, dataset)
        _tell_problems(remaining, cache, output)
    return output.finish(
        bool(remaining),
        cache=str(cache.resolve()),
        problems=[{"id": problem.id, "what": problem.what} for problem in problems],
        repaired=bool(problems and not remaining),
    )


def _tell_problems(problems: Sequence[Any], cache: Path, output: Output) -> None:
    for problem in problems[:_SHOWN_PROBLEMS]:
        output.complain(f"  {printable(problem)}")
    if len(problems) > _SHOWN_PROBLEMS:
        output.complain(f"  ... and {len(problems) - _SHOWN_PROBLEMS:,} more")
    found = plural(len(problems), "problem") if problems else "no problem"
    output.say(f"{short_path(cache)}: {found}")


def export(
    cache: CacheFile,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="What to write: .npz, .csv, .parquet, or .tsv for TensorBoard."
        ),
    ],
    output: Output,
    ids: Annotated[
        Path | None, choice("Text file with an id per line.", "all", metavar="FILE")
    ] = None,
    layers: Annotated[
        str | None, choice("Layers.", "those stored", metavar="NAME,NAME,...")
    ] = None,
    levels: Annotated[str | None, choice("Levels.", "those stored", metavar="N,N,...")] = None,
    scales: Annotated[str | None, choice("Scales.", "those stored", metavar="S,S,...")] = None,
    combine: Annotated[
        str, choice("What becomes of several scales: concat, mean or max.")
    ] = "concat",
) -> int:
    """Write features with their ids and labels for other programs."""
    from spptransfer.cache import FeatureCache
    from spptransfer.cache.export import export as write
    from spptransfer.files import read_text

    chosen = None
    if ids is not None:
        try:
            text = read_text(ids, errors="surrogateescape")  # as file names are read
        except OSError as error:
            raise CacheError(f"cannot read the ids in '{ids}': {error.strerror}") from error
        chosen = [line for line in text.split("\n") if line]
    count = write(
        FeatureCache.open(cache),
        file,
        chosen,
        levels=numbers("levels", levels, "6,3,1"),
        scales=numbers("scales", scales, "6,3,1"),
        combine=combine,  # type: ignore[arg-type]
        layers=layers.split(",") if layers else None,
    )
    output.say(f"{plural(count, 'row')}: {short_path(file)}")
    rows = {"ok": count, "failed": 0, "reused": 0}
    return output.finish(rows=rows, cache=str(cache.resolve()), file=str(file.resolve()))


def prune(
    folders: Folders,
    output: Output,
    pipelines: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PIPELINE",
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
    from spptransfer.experiment import Machine, prepare_file
    from spptransfer.experiment.preparation import alternatives
    from spptransfer.files import human_bytes

    if overrides and not pipelines:
        raise ConfigError("--set needs a PIPELINE: whose values are they?")
    machine, keep = Machine(**vars(folders)), []
    for file in pipelines or ():
        for each in prepare_file(file, machine, overrides or ()).experiments:
            is_open = each.pipeline.features.precision == "auto"  # then any that it may become
            keep += [other.cache[0] for other in (alternatives(each) if is_open else [each])]
    removals = remove(folders.cache_dir, keep, dry_run=not delete, caches=bool(keep))
    for removal in removals:
        size = human_bytes(removal.bytes)
        output.say(f"{short_path(removal.path)} ({size}): {removal.reason}")
    total = human_bytes(sum(removal.bytes for removal in removals))
    what = f"removed {total}" if delete else f"{total} would be removed; --delete does so"
    output.say(what if removals else "nothing to remove")
    paths = [str(removal.path) for removal in removals]
    return output.finish(removed=paths if delete else [], removable=paths)


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
    from spptransfer.cache.writer import merge as bring_together

    merged = bring_together(file, sources)
    failed = len(merged.failures)
    output.say(f"{plural(len(merged), 'row')}, {failed:,} failed: {short_path(file)}")
    rows = {"ok": len(merged), "failed": failed, "reused": 0}
    return output.finish(rows=rows, cache=str(file.resolve()))


def backbones(
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show this one with all its layers, or list timm's whose names fit a pattern.",
        ),
    ] = None,
    weights_dir: WeightsDir = None,
) -> int:
    """List backbones: layers, channels, stride, weights and whether those are present.

    Channels and stride are those of the last map, which the layer 'spp' pools.
    """
    from spptransfer import backbones as catalogue

    if name and catalogue.is_timm(name) and "*" in name:
        return _list_timm(output, name)
    rows, told = [], []
    for info in map(catalogue.describe, [name] if name else catalogue.names()):
        places = {
            source: path
            for source in info.weights
            if (path := catalogue.BackboneRef(info.name, source, weights_dir).path())
        }
        if name:
            output.say(_one_backbone(info, places))
        shown = ", ".join(s if path.exists() else f"{s} (absent)" for s, path in places.items())
        maps = [(each.channels, each.stride) for each in info.layers if each.kind == "map"]
        layers = ", ".join(layer.name for layer in info.layers)
        about = shown or "none: use your own file"
        rows.append([info.name, *(maps[-1] if maps else (None, None)), about, layers])
        told.append(
            {
                "name": info.name,
                "layers": [dataclasses.asdict(layer) for layer in info.layers],
                "min_side": info.min_side,
                "grid": info.grid,
                "only_side": info.only_side,
                "scales": list(info.default_scales),
                "weights": {source: path.exists() for source, path in places.items()},
            }
        )
    if not name:
        output.say(table(rows, ["backbone", "channels", "stride", "weights", "layers"]))
        output.say("\nand any model of timm: spptransfer backbones 'timm/*PART OF ITS NAME*'")
    return output.finish(backbones=told)


def _list_timm(output: Output, pattern: str) -> int:
    from spptransfer.backbones.timm_models import names

    found = names(pattern)
    if not found:
        raise ConfigError(f"no model of timm fits '{pattern}', as 'timm/*dinov2*' does")
    output.say("\n".join(found))
    return output.finish(backbones=[{"name": name} for name in found])


def _one_backbone(info: BackboneInfo, places: dict[str, Path]) -> str:
    layers = [[layer.name, layer.kind, layer.channels, layer.stride] for layer in info.layers]
    lines = [
        table(layers, ["layer", "kind", "channels", "stride"]),
        "",
        f"{info.name}: mean {list(info.mean)}, std {list(info.std)} of RGB in [0, 1]",
        f"input: {_input(info)}",
        f"scales, if none are given: {', '.join(map(str, info.default_scales))}",
    ]
    for source, path in places.items():
        here = "present" if path.is_file() else "fetched on first use"
        licence = info.weights[source].licence
        lines.append(f"weights '{source}' ({licence}): {here}, {short_path(path)}")
    lines.append("weights of your own: features.weights: FILE.safetensors or FILE.pth")
    return "\n".join(lines)


def _input(info: BackboneInfo) -> str:
    if info.only_side:
        return f"{info.only_side} x {info.only_side} pixels only (view: warp or center_crop)"
    sides = "any sides" if info.grid == 1 else f"sides that are multiples of {info.grid}"
    return f"{sides}, from {plural(info.min_side, 'pixel')} on"


def datasets(
    output: Output,
    data_root: DataRoot = None,
    fetch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fetch a dataset's official archives.")
    ] = None,
    archives: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="With --fetch: an archive that is downloaded already; can be given repeatedly.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Say which datasets are here and how to get the others, or fetch one."""
    from spptransfer.datasets import status

    if archives and fetch is None:
        raise ConfigError("--from needs --fetch NAME: which dataset are the archives of?")
    if fetch is not None:
        from spptransfer.datasets.fetch import fetch as fetch_dataset

        shown = not output.quiet
        where = fetch_dataset(fetch, data_root, from_file=archives, progress=shown)
        output.say(f"{fetch}: {short_path(where)}\n")
    found = status(data_root)
    rows = [
        [s.name, s.images if s.present else None, s.where if s.present else None] for s in found
    ]
    output.say(table(rows, ["dataset", "images", "where"]))
    output.say("\nhow to get the others:")
    for absent in (s for s in found if not s.present):
        output.say(f"  {absent.name}: {printable(absent.how)}")
    return output.finish(datasets=[s._asdict() for s in found])
