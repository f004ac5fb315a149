"""Commands that list what there is: backbones and datasets, registered ones among them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import DataRoot, WeightsDir, add_command
from spptransfer.cli.output import Output, printable, short_path, table
from spptransfer.errors import ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.backbones import BackboneInfo


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_command(app, backbones, "List backbones, their layers and weights.")
    add_command(app, datasets, "List datasets, or fetch one.")


def backbones(
    output: Output,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one with all its layers.")
    ] = None,
    weights_dir: WeightsDir = None,
) -> int:
    """List backbones: layers, channels, stride, weights and whether those are present.

    Channels and stride are those of the last map, which the layer 'spp' pools.
    """
    from spptransfer import backbones as catalogue
    from spptransfer.backbones.weights import path_of

    infos = [catalogue.describe(known) for known in ([name] if name else catalogue.names())]
    places = {
        info.name: {source: path_of(info.name, source, weights_dir) for source in info.weights}
        for info in infos
    }
    if name:
        output.say(_one_backbone(infos[0], places[infos[0].name]))
    else:
        rows = [_row(info, places[info.name]) for info in infos]
        output.say(table(rows, ["backbone", "channels", "stride", "weights", "layers"]))
    return output.finish(backbones=[_as_json(info, places[info.name]) for info in infos])


def _row(info: BackboneInfo, places: dict[str, Path]) -> list[Any]:
    shown = ", ".join(s if path.exists() else f"{s} (absent)" for s, path in places.items())
    last = [layer for layer in info.layers if layer.kind == "map"][-1:]
    channels, stride = (last[0].channels, last[0].stride) if last else (None, None)
    layers = ", ".join(layer.name for layer in info.layers)
    return [info.name, channels, stride, shown or "none: use your own file", layers]


def _one_backbone(info: BackboneInfo, places: dict[str, Path]) -> str:
    layers = [[layer.name, layer.kind, layer.channels, layer.stride] for layer in info.layers]
    lines = [
        table(layers, ["layer", "kind", "channels", "stride"]),
        "",
        f"smallest side: {plural(info.min_side, 'pixel')}",
    ]
    for source, path in places.items():
        here = "present" if path.exists() else "fetched on first use"
        licence = info.weights[source].licence
        lines.append(f"weights '{source}' ({licence}): {here}, {short_path(path)}")
    lines.append("weights of your own: features.weights: FILE.safetensors or FILE.pth")
    return "\n".join(lines)


def _as_json(info: BackboneInfo, places: dict[str, Path]) -> dict[str, Any]:
    return {
        "name": info.name,
        "layers": [dataclasses.asdict(layer) for layer in info.layers],
        "min_side": info.min_side,
        "weights": {source: path.exists() for source, path in places.items()},
    }


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
