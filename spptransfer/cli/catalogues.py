"""Commands that list what there is: backbones and datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spptransfer.cli.options import DataRoot, Json, Quiet, WeightsDir
from spptransfer.cli.output import Output, printable, short_path, table
from spptransfer.errors import ConfigError
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.backbones.info import BackboneInfo


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(short_help="List backbones, their layers and weights.")(backbones)
    app.command(short_help="List datasets, or fetch one.")(datasets)


def backbones(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one with all its layers.")
    ] = None,
    weights_dir: WeightsDir = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """List backbones: layers, channels, stride, weights and whether those are present.

    Channels and stride are those of the last map, which the layer 'spp' pools.
    """
    from spptransfer import backbones as catalogue

    output = Output(quiet, json)
    infos = [catalogue.describe(known) for known in ([name] if name else catalogue.names())]
    if name:
        output.say(_one_backbone(infos[0], weights_dir))
    else:
        rows = [_row(info, weights_dir) for info in infos]
        output.say(table(rows, ["backbone", "channels", "stride", "weights", "layers"]))
    output.finish(status="ok", backbones=[_as_json(info, weights_dir) for info in infos])
    return 0


def _row(info: BackboneInfo, weights_dir: Path | None) -> list[Any]:
    weights = _weights(info, weights_dir)
    shown = ", ".join(f"{source}{'' if here else ' (absent)'}" for source, here in weights.items())
    last = info.layer("spp")
    layers = ", ".join(layer.name for layer in info.layers)
    return [info.name, last.channels, last.stride, shown or "none: use your own file", layers]


def _one_backbone(info: BackboneInfo, weights_dir: Path | None) -> str:
    from spptransfer.backbones.weights import path_of

    layers = [[layer.name, layer.kind, layer.channels, layer.stride] for layer in info.layers]
    lines = [
        table(layers, ["layer", "kind", "channels", "stride"]),
        "",
        f"smallest side: {plural(info.min_side, 'pixel')}",
    ]
    for source, entry in info.weights.items():
        path = path_of(info.name, source, weights_dir)
        here = "present" if path.exists() else "fetched on first use"
        lines.append(f"weights '{source}' ({entry.licence}): {here}, {short_path(path)}")
    lines.append("weights of your own: features.weights: FILE.safetensors or FILE.pth")
    return "\n".join(lines)


def _as_json(info: BackboneInfo, weights_dir: Path | None) -> dict[str, Any]:
    layers = [
        {"name": x.name, "kind": x.kind, "channels": x.channels, "stride": x.stride}
        for x in info.layers
    ]
    return {
        "name": info.name,
        "layers": layers,
        "min_side": info.min_side,
        "weights": _weights(info, weights_dir),
    }


def datasets(
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
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Say which datasets are here and how to get the others, or fetch one."""
    from spptransfer.datasets import status

    output = Output(quiet, json)
    if archives and fetch is None:
        raise ConfigError("--from needs --fetch NAME: which dataset are the archives of?")
    if fetch is not None:
        from spptransfer.datasets.fetch import fetch as fetch_dataset

        where = fetch_dataset(fetch, data_root, from_file=archives, progress=not quiet)
        output.say(f"{fetch}: {short_path(where)}")
        output.say()
    found = status(data_root)
    rows = [
        [s.name, s.images if s.present else None, s.where if s.present else None] for s in found
    ]
    output.say(table(rows, ["dataset", "images", "where"]))
    output.say("\nhow to get the others:")
    for absent in (s for s in found if not s.present):
        output.say(f"  {absent.name}: {printable(absent.how)}")
    output.finish(status="ok", datasets=[s._asdict() for s in found])
    return 0


def _weights(info: BackboneInfo, weights_dir: Path | None) -> dict[str, bool]:
    """Whether each of the catalogue's weights is on this machine."""
    from spptransfer.backbones.weights import path_of

    return {source: path_of(info.name, source, weights_dir).exists() for source in info.weights}
