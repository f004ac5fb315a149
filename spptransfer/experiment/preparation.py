"""Check a pipeline against this machine: all that can go wrong before an image is opened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spptransfer import protocols
from spptransfer.backbones import BackboneRef
from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import is_begun, precision_note
from spptransfer.config import Pipeline
from spptransfer.datasets import Dataset, open_dataset
from spptransfer.datasets.csv_file import find_csv
from spptransfer.errors import CacheError, ConfigError
from spptransfer.files import expand_path, make_folder, write_text
from spptransfer.runtimes import ComputeOptions, check_options
from spptransfer.spec import FeatureSpec, Precision, check_layers, shared_part
from spptransfer.specify import feature_spec, levels_and_scales

# What a command does next or has found out, in lines for people.
STEPS = "spptransfer.steps"
steps = logging.getLogger(STEPS)

# Datasets whose images are the same wherever they lie; the caches of all others are told apart
# by their place.
_PUBLISHED = ("caltech101", "voc2007")
# What `precision: auto` may become, in the order in which caches that are there are preferred.
_CANDIDATES: tuple[Precision, ...] = ("float32", "bfloat16")
# The longest part of a cache's name.
_SLUG = 40
# Names that Windows keeps for its devices, whatever their suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9]) *(\.|$)", re.IGNORECASE)


class StopRequest(threading.Event):
    """A wish to stop; `extracting` says whether somebody is there to finish a part first."""

    extracting = False


@dataclass(frozen=True)
class Machine:
    """What a run uses here; nothing of it changes a number."""

    data_root: Path | None = None
    cache_dir: Path = Path("cache")
    runs_dir: Path = Path("runs")
    weights_dir: Path | None = None
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    progress: bool = False
    stop: StopRequest = field(default_factory=StopRequest)


@dataclass(frozen=True)
class Experiment:
    """A checked pipeline on this machine; `wanted` are the features that it asks for.

    Where `undecided`, their precision is still to be chosen by `resolve_precision`.
    """

    name: str
    pipeline: Pipeline
    machine: Machine
    dataset: Dataset
    backbone: BackboneRef
    wanted: FeatureSpec
    undecided: bool = False

    @cached_property
    def protocol(self) -> protocols.Protocol:
        """The protocol by name."""
        return protocols.get(self.pipeline.protocol.name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of the protocol."""
        return self.pipeline.protocol.settings()

    @cached_property
    def counted(self) -> Dataset:
        """The dataset with only the classes that the protocol counts."""
        return self.protocol.restrict(self.dataset, self.settings)

    @cached_property
    def splits(self) -> list[protocols.Split]:
        """Splits of the protocol, over all images whether they can be read or not."""
        return self.protocol.make_splits(self.dataset, self.settings)

    @property
    def experiments(self) -> list[Experiment]:
        """Itself: what a table of one has."""
        return [self]

    @property
    def selection(self) -> dict[str, Any]:
        """Layers, levels, scales and combination in the order of the columns.

        Vectors have no levels; the whole map is the level whose bins are its cells.
        """
        section, levels = self.pipeline.features, self.wanted.levels
        return {
            "layers": section.layer,
            "levels": (section.levels or levels) if levels else None,
            "scales": section.scales,
            "combine": section.combine,
        }

    @cached_property
    def cache(self) -> tuple[Path, FeatureSpec]:
        """Where the features lie or will lie, and the spec of that file.

        A cache of more layers, finer levels or more scales is used where there is one already:
        what is wanted follows from it exactly.
        """
        folder, prefix = self.machine.cache_dir, self._prefix()
        layers = "+".join(map(_slug, self.wanted.layers))[:_SLUG]
        exact = folder / f"{prefix}-{layers}-{self.wanted.fingerprint[:12]}.h5"
        if exact.exists():
            return exact, self.wanted
        # A shard's name says more.
        whole = re.compile(re.escape(prefix) + r"-[^-]+-[0-9a-f]{12}\.h5")
        for candidate in sorted(folder.glob(f"{prefix}-*.h5")):
            if whole.fullmatch(candidate.name):
                with contextlib.suppress(CacheError):
                    return candidate, FeatureCache.open(candidate, self.wanted).spec
        return exact, self.wanted

    @property
    def precision_choice(self) -> dict[str, Any] | None:
        """Why the cache has its precision; None where nothing was measured to choose it."""
        try:
            found = json.loads(precision_note(self.cache[0]).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _prefix(self) -> str:
        """Begin the cache's name: by the place of the user's own images, among others."""
        parts = [self.dataset.name, self.wanted.backbone]
        if self.dataset.name not in _PUBLISHED:
            place = self.dataset.root.resolve()
            named = place / expand_path(self.pipeline.dataset.root or "").name
            if named.is_file():  # one folder can hold several tables
                place = named
            elif self.dataset.name == "csv":
                place = find_csv(place) or place
            digest = hashlib.sha256(str(place).encode("utf-8", "surrogateescape"))
            parts[1:1] = [place.name, digest.hexdigest()[:8]]
        return "-".join(map(_slug, parts))


def prepare(
    name: str, pipeline: Pipeline, machine: Machine, *, dataset: Dataset | None = None
) -> Experiment:
    """Open the dataset and check everything that a pipeline's features ask for.

    Where the precision is left to us, that of a cache that is there already is taken; if there
    is none, it stays undecided.
    """
    section = pipeline.features
    is_open = section.precision == "auto"
    check_options(machine.compute, None if is_open else section.precision)
    if dataset is None:
        where, options = pipeline.dataset, pipeline.dataset.options()
        dataset = open_dataset(where.name, where.root, data_root=machine.data_root, **options)
    backbone = BackboneRef(
        section.backbone, section.weights or "", machine.weights_dir, machine.cache_dir
    )
    layers = check_layers(section.layer)
    levels, scales = levels_and_scales(backbone.info, layers, section.levels, section.scales)
    found = {"weights": backbone.weights, "levels": levels, "scales": scales}
    section = section.model_copy(update=found)
    classifier = pipeline.classifier
    if classifier.normalize is None:
        step = "l2" if len(layers) == 1 else "l2_block"
        classifier = classifier.model_copy(update={"normalize": (step,)})
    pipeline = pipeline.model_copy(update={"features": section, "classifier": classifier})
    asked = section.model_dump(exclude={"backbone", "weights", "combine"})
    wanted = feature_spec(backbone, **asked)
    return _settle(Experiment(name, pipeline, machine, dataset, backbone, wanted, is_open))


def resolve_precision(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Choose the precision of experiments that leave it to us, and put down why.

    The choice is part of the feature spec, hence of the cache's name. The figures behind it
    depend on the machine; they lie in a small file beside the cache.
    """
    settled = [_settle(each) for each in experiments]
    chosen: dict[str, Precision] = {}
    for number, each in enumerate(settled):
        if each.undecided:
            key = pass_key(each, each.wanted)
            if key not in chosen:
                chosen[key] = _choose(key, settled)
            settled[number] = _in(each, chosen[key])
    return settled


def alternatives(experiment: Experiment) -> list[Experiment]:
    """Return all that an experiment can become whose precision is left to us."""
    found = []
    for precision in _CANDIDATES:
        try:
            check_options(experiment.machine.compute, precision)
        except ConfigError:
            continue
        found.append(_in(experiment, precision))
    return found


def pass_key(experiment: Experiment, spec: FeatureSpec) -> str:
    """Return what is equal for experiments that one pass over the images can serve."""
    section = experiment.pipeline
    shared = shared_part(spec).to_dict()
    return json.dumps([section.dataset.model_dump_json(), section.features.weights, shared])


def plain_name(text: str) -> str:
    """Turn a text into a file name that every system takes.

    Examples
    --------
    >>> plain_name("con"), plain_name("a: b? "), plain_name("crop 224")
    ('_con', 'a_ b_', 'crop 224')
    """
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", text).rstrip(". ") or "_"
    return f"_{name}" if _RESERVED.match(name) else name


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text).strip(".")[:_SLUG] or "images"


def _in(experiment: Experiment, precision: Precision) -> Experiment:
    wanted = replace(experiment.wanted, precision=precision)
    return replace(experiment, wanted=wanted, undecided=False)


def _settle(experiment: Experiment) -> Experiment:
    """Take the precision of a cache: a finished one first, then a begun one, then a choice."""
    if not experiment.undecided:
        return experiment
    candidates = alternatives(experiment)
    for is_there in (Path.exists, is_begun, lambda path: precision_note(path).exists()):
        for candidate in candidates:
            if is_there(candidate.cache[0]):
                return candidate
    return experiment


def _choose(key: str, experiments: Sequence[Experiment]) -> Precision:
    """Choose the precision of those that one pass can serve and that are undecided."""
    undecided = []
    for each in experiments:
        if each.pipeline.features.precision == "auto":
            if pass_key(each, replace(each.wanted, precision="float32")) != key:
                continue
            if not each.undecided:
                return each.wanted.precision
            undecided.append(each)
    from spptransfer.extraction.precision import choose_precision  # imports torch

    first = undecided[0]
    first.dataset.check_images()  # before a network is loaded to be tried on some
    choice = choose_precision(
        first.backbone,
        [each.wanted for each in undecided],
        first.dataset.iter_paths(range(len(first.dataset))),
        count=len(first.dataset),
        options=first.machine.compute,
    )
    # Shards that are begun side by side in one folder must not choose differently.
    for other in map(_settle, undecided):
        if not other.undecided:
            return other.wanted.precision
    steps.info("precision: %s (%s)", choice.precision, choice.reason)
    if choice.gain is not None:  # otherwise nothing was tried
        make_folder(first.machine.cache_dir)
        for each in undecided:
            note = precision_note(_in(each, choice.precision).cache[0])
            write_text(note, json.dumps(vars(choice), indent=1))
    return choice.precision
