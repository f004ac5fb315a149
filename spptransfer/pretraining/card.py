"""The model card: what was trained, on what, how, and how well, for people and for programs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from spptransfer import __version__
from spptransfer.backbones.registry import describe
from spptransfer.pretraining.config import PretrainingPipeline
from spptransfer.text import plural

_LIBRARIES = ("torch", "numpy", "pillow")


@dataclass(frozen=True)
class Facts:
    """What is known of a training before its first step.

    Parameters
    ----------
    pipeline : PretrainingPipeline
        All settings.
    data_name : str
        Name of the folder or ZIP file of images.
    data_sha256 : str
        Hash of the images' names, sizes in bytes and classes.
    classes : tuple of str
        In the order of the network's scores.
    images, validation_images : int
        How many there are.
    damaged : int
        How many of them were found to be no image, where all were decoded beforehand.
    parameters : int
        Trainable numbers of the network.
    precision : str
        Arithmetic of the network in training.
    processes : int
        Processes that train together.
    device : str
        Kind of device.
    teacher_sha256 : str or None
        Hash of the teacher's weights, if there is a teacher.
    """

    pipeline: PretrainingPipeline
    data_name: str
    data_sha256: str
    classes: tuple[str, ...]
    images: int
    validation_images: int
    damaged: int
    parameters: int
    precision: str
    processes: int
    device: str
    teacher_sha256: str | None

    @property
    def levels(self) -> tuple[int, ...]:
        """The pyramid that the fully connected layers stand on."""
        network = self.pipeline.network
        return network.levels or describe(network.name).levels

    def settings(self) -> dict[str, Any]:
        """The pipeline file with all defaults, without folders of this machine."""
        values = self.pipeline.model_dump(mode="json")
        values["dataset"]["root"] = self.data_name
        if values["distill"] is not None:
            values["distill"]["weights"] = Path(values["distill"]["weights"]).name
        return values

    def measured_on(self) -> str:
        """What the accuracies are measured on."""
        dataset, images = self.pipeline.dataset, self.pipeline.images
        where = f"`{dataset.val}`"
        if dataset.val is None:
            where = f"held out, {100 * dataset.holdout:g} % of every class"
        return (
            f"{self.validation_images:,} images ({where}), one central crop of {images.size} x "
            f"{images.size} pixels, the image's smaller side being {images.resize}"
        )

    def as_json(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Everything a program may want to know of the weights.

        Parameters
        ----------
        history : sequence of mapping
            Lines of ``metrics.jsonl``, not empty.

        Returns
        -------
        dict
            Numbers, strings, lists and dicts.
        """
        last = history[-1]
        return {
            "network": self.pipeline.network.name,
            "parameters": self.parameters,
            "levels": list(self.levels),
            "classes": list(self.classes),
            "data": {
                "name": self.data_name,
                "sha256": self.data_sha256,
                "images": self.images,
                "validation_images": self.validation_images,
                "damaged": self.damaged,
                "licence": self.pipeline.dataset.licence,
            },
            "pipeline": self.settings(),
            "teacher_sha256": self.teacher_sha256,
            "accuracy": {
                "top1": last["val_top1"],
                "top5": last["val_top5"],
                "measured_on": self.measured_on(),
            },
            "epochs": len(history),
            "metrics": dict(last),
            "seconds": round(sum(line["seconds"] for line in history), 1),
            "machine": {
                "device": self.device,
                "processes": self.processes,
                "precision": self.precision,
            },
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
        }


def versions() -> dict[str, str]:
    """Versions of what the weights were made with."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"spptransfer": __version__, "python": platform.python_version(), **found}


def model_card(about: Mapping[str, Any]) -> str:
    """Write the card for people.

    Parameters
    ----------
    about : mapping
        What `Facts.as_json` returns.

    Returns
    -------
    str
        Markdown.
    """
    settings = {key: value for key, value in about["pipeline"].items() if value is not None}
    recipe = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=92)
    return _template().render(about, recipe=recipe.strip())


def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals["plural"] = plural
    return environment.get_template("model-card.md.jinja")
