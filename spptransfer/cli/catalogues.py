"""Commands that list what there is: backbones and datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spptransfer.cli.options import DataRoot, Json, Quiet, WeightsDir
from spptransfer.cli.output import Output, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(backbones)
    app.command()(datasets)


def backbones(
    name: Annotated[str | None, typer.Argument(help="Show just this one, with all layers.")] = None,
    weights_dir: WeightsDir = None,
    json: Json = False,
) -> int:
    """List backbones: layers, channels, stride, weights and whether those are present."""
    from spptransfer import backbones as catalogue

    output = Output(quiet=False, json=json)
    infos = [catalogue.describe(known) for known in ([name] if name else catalogue.names())]
    rows, listed = [], []
    for info in infos:
        weights = {source: _is_present(info.name, source, weights_dir) for source in info.weights}
        last = info.layer("spp")
        names = ", ".join(layer.name for layer in info.layers)
        shown = ", ".join(
            f"{source}{'' if here else ' (absent)'}" for source, here in weights.items()
        )
        rows.append(
            [info.name, last.channels, last.stride, shown or "none: use your own file", names]
        )
        layers = [
            {"name": x.name, "kind": x.kind, "channels": x.channels, "stride": x.stride}
            for x in info.layers
        ]
        listed.append({"name": info.name, "layers": layers, "weights": weights})
    if name:
        layers_of = [[x.name, x.kind, x.channels, x.stride or "-"] for x in infos[0].layers]
        output.say(table(layers_of, ["layer", "kind", "channels", "stride"]))
        output.say(f"\nsmallest side: {infos[0].min_side} pixels")
        for source, entry in infos[0].weights.items():
            where = catalogue.weights.path_of(name, source, weights_dir)
            here = "present" if where.exists() else "absent"
            output.say(f"weights '{source}' ({entry.licence}): {here}, {where}")
    else:
        output.say(table(rows, ["backbone", "channels", "stride", "weights", "layers"]))
    output.finish(status="ok", backbones=listed)
    return 0


def datasets(
    data_root: DataRoot = None,
    fetch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fetch a dataset's official archives.")
    ] = None,
    archives: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="FILE", help="Archives that are downloaded already."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Say which datasets are here and how to get the others, or fetch one."""
    from spptransfer.datasets import status

    output = Output(quiet, json)
    if fetch is not None:
        from spptransfer.datasets.fetch import fetch as fetch_dataset

        where = fetch_dataset(fetch, data_root, from_file=archives, progress=not quiet)
        output.say(f"{fetch}: {where}")
    found = status(data_root)
    rows = [[s.name, s.present, s.images, s.where if s.present else s.how] for s in found]
    output.say(table(rows, ["dataset", "present", "images", "where, or how to get it"]))
    output.finish(status="ok", datasets=[s._asdict() for s in found])
    return 0


def _is_present(name: str, source: str, weights_dir: Path | None) -> bool:
    from spptransfer.backbones.weights import path_of

    return path_of(name, source, weights_dir).exists()
