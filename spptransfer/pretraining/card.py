"""The model card: what was trained, on what, how, and how well, for people and for programs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from spptransfer import __version__
from spptransfer.backbones import describe
from spptransfer.pretraining.config import PretrainingPipeline
from spptransfer.text import plural

_LIBRARIES = ("torch", "numpy", "pillow")


def describe_training(
    pipeline: PretrainingPipeline, data: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """Describe what is known of a training before its first step, without this machine's folders.

    `data` holds ``name`` of the folder or ZIP file, ``sha256``, ``images`` and
    ``validation_images``; the classes are in the order of the network's scores.
    """
    settings = pipeline.model_dump(mode="json")
    settings["dataset"]["root"] = data["name"]
    if settings["distill"] is not None:
        settings["distill"]["weights"] = Path(settings["distill"]["weights"]).name
    network, libraries = pipeline.network, {name: version(name) for name in _LIBRARIES}
    return {
        "network": network.name,
        "levels": list(network.levels or describe(network.name).levels),
        "classes": list(classes),
        "data": {**data, "damaged": 0, "licence": pipeline.dataset.licence},
        "pipeline": settings,
        "versions": {
            "spptransfer": __version__,
            "python": platform.python_version(),
            **libraries,
        },
        "date": datetime.now(UTC).date().isoformat(),
    }


def describe_epochs(
    about: Mapping[str, Any], history: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Add what some epochs, lines of ``metrics.jsonl``, have brought to `describe_training`'s."""
    last, pipeline = history[-1], about["pipeline"]
    dataset, images = pipeline["dataset"], pipeline["images"]
    where = f"`{dataset['val']}`"
    if dataset["val"] is None:
        where = f"held out, {100 * dataset['holdout']:g} % of every class"
    measured_on = (
        f"{about['data']['validation_images']:,} images ({where}), one central crop of "
        f"{images['size']} x {images['size']} pixels, the image's smaller side being "
        f"{images['resize']}"
    )
    accuracy = {"top1": last["val_top1"], "top5": last["val_top5"], "measured_on": measured_on}
    return {
        **about,
        "data": {**about["data"], "damaged": last["damaged"]},
        "accuracy": accuracy,
        "epochs": len(history),
        "metrics": dict(last),
        "seconds": round(sum(line["seconds"] for line in history), 1),
    }


def model_card(about: Mapping[str, Any]) -> str:
    """Write the card for people, in Markdown, from what `describe_epochs` returns."""
    settings = {key: value for key, value in about["pipeline"].items() if value is not None}
    recipe = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=92)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals["plural"] = plural
    template = environment.get_template("model-card.md.jinja")
    return template.render(about, recipe=recipe.strip())
