"""Everything that can go wrong before the first image is opened, goes wrong here."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer import backbones, protocols
from spptransfer.backbones import weights as weights_files
from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import precision_note
from spptransfer.config import Pipeline
from spptransfer.datasets import Dataset, open_dataset
from spptransfer.datasets.csv_file import find_csv
from spptransfer.errors import CacheError, ConfigError
from spptransfer.extraction.division import check_engine
from spptransfer.protocols import Protocol, Split
from spptransfer.runtimes import check_device, check_precision, check_runtime
from spptransfer.spec import FeatureSpec
from spptransfer.specify import feature_spec

if TYPE_CHECKING:
    from spptransfer.backbones.loading import Backbone

# Datasets whose images are the user's own: their caches are told apart by where they lie.
_OWN = ("folder", "csv", "demo")


class StopRequest(threading.Event):
    """A wish to stop; `extracting` says whether somebody is there to finish a part first."""

    extracting = False


@dataclass(frozen=True)
class Machine:
    """What a run uses here; nothing of it changes a number.

    Parameters
    ----------
    data_root : Path or None
        Folder in which datasets are looked for.
    cache_dir, runs_dir : Path
        Where feature caches and runs land.
    weights_dir : Path or None
        Folder of official weights; None for the user's.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    runtime : {"torch", "openvino", "onnxruntime"}
        Who computes a network's maps.
    jobs : int or None
        Parallel workers; None for one per processor.
    engine : {"auto", "threads", "processes", "dask"}
        What these workers are: by default processes where `jobs` asks for several.
    scheduler : str or None
        Address of Dask's scheduler; None for a cluster on this machine.
    progress : bool
        Show progress bars.
    stop : StopRequest
        Set it to stop an extraction after the part in work.
    """

    data_root: Path | None = None
    cache_dir: Path = Path("cache")
    runs_dir: Path = Path("runs")
    weights_dir: Path | None = None
    device: str = "auto"
    runtime: str = "torch"
    jobs: int | None = None
    engine: str = "auto"
    scheduler: str | None = None
    progress: bool = False
    stop: StopRequest = field(default_factory=StopRequest)


@dataclass(frozen=True)
class Experiment:
    """A checked pipeline on this machine.

    Attributes
    ----------
    name : str
        Name of the pipeline, such as that of its file.
    pipeline : Pipeline
        As the user wrote it.
    machine : Machine
        Where it runs.
    dataset : Dataset
        All images.
    wanted : FeatureSpec
        The features asked for.
    protocol : Protocol
        The protocol by name.
    settings : dict
        All its settings.
    undecided : bool
        Whether `wanted` has a precision that is still to be chosen; see `precision.decide`.
    """

    name: str
    pipeline: Pipeline
    machine: Machine
    dataset: Dataset
    wanted: FeatureSpec
    protocol: Protocol
    settings: dict[str, Any]
    undecided: bool = False

    @cached_property
    def counted(self) -> Dataset:
        """The dataset with only the classes that the protocol counts."""
        return self.protocol.restrict(self.dataset, self.settings)

    @cached_property
    def splits(self) -> list[Split]:
        """Splits of the protocol, over all images whether they can be read or not."""
        return self.protocol.make_splits(self.dataset, self.settings)

    def loader(self, layers: Sequence[str]) -> Callable[[], Backbone]:
        """Loads the backbone with some of its layers when called, here or in another process."""
        section, machine = self.pipeline.features, self.machine
        return partial(
            backbones.load,
            section.backbone,
            section.weights,
            layer=tuple(layers),
            weights_dir=machine.weights_dir,
            memo_dir=machine.cache_dir,
        )

    @property
    def load_backbone(self) -> Callable[[], Backbone]:
        """Loads the backbone with the experiment's layer."""
        return self.loader([self.wanted.layer])

    @property
    def channels(self) -> int:
        """Channels of the layer."""
        return backbones.describe(self.wanted.backbone).layer(self.wanted.layer).channels

    @property
    def levels(self) -> tuple[int, ...] | None:
        """Levels in the order of the columns; None for fully connected layers.

        The whole map is the level whose bins are its cells.
        """
        if not self.wanted.levels:
            return None
        return self.pipeline.features.levels or self.wanted.levels

    @cached_property
    def cache(self) -> tuple[Path, FeatureSpec]:
        """Where the features lie or will lie, and the spec of that file.

        A cache of finer levels or more scales is used where there is one already: what is
        wanted follows from it exactly.
        """
        folder, prefix = self.machine.cache_dir, self._cache_prefix()
        exact = folder / f"{prefix}-{self.wanted.fingerprint[:12]}.h5"
        if exact.exists():
            return exact, self.wanted
        for candidate in sorted(folder.glob(f"{prefix}-*.h5")):
            try:
                spec = FeatureCache.open(candidate, self.wanted).spec
            except CacheError:
                continue
            return candidate, spec
        return exact, self.wanted

    @property
    def precision_choice(self) -> dict[str, Any] | None:
        """Why the cache has its precision; None where nothing was measured to choose it."""
        try:
            found = json.loads(precision_note(self.cache[0]).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _cache_prefix(self) -> str:
        where = self.dataset.name
        if where in _OWN:
            place = self._place()
            digest = hashlib.sha256(str(place).encode("utf-8", "surrogateescape")).hexdigest()
            where = f"{where}-{_slug(place.name)}-{digest[:8]}"
        return f"{where}-{self.wanted.backbone}-{self.wanted.layer}"

    def _place(self) -> Path:
        """Folder or table of the user's own images; one folder can hold several tables."""
        root = self.dataset.root.resolve()
        if self.dataset.name != "csv":
            return root
        named = root / Path(self.pipeline.dataset.root or "").name
        return named if named.is_file() else find_csv(root) or root


def prepare(
    name: str, pipeline: Pipeline, machine: Machine, *, dataset: Dataset | None = None
) -> Experiment:
    """Open the dataset and check everything that a pipeline asks for.

    Parameters
    ----------
    name : str
        Name of the pipeline.
    pipeline : Pipeline
        A checked pipeline file.
    machine : Machine
        Where it runs.
    dataset : Dataset, optional
        The pipeline's dataset where it is open already.

    Returns
    -------
    Experiment

    Raises
    ------
    ConfigError
        If a name or value is not allowed.
    DatasetError
        If the dataset is not found or does not fit.
    WeightsError
        If the weights are not found and cannot be fetched.
    """
    _check_machine(machine)
    section = pipeline.features
    protocol = protocols.get(pipeline.protocol.name)
    settings = protocol.settings(pipeline.protocol.settings())
    if dataset is None:
        dataset = open_dataset(
            pipeline.dataset.name,
            pipeline.dataset.root,
            data_root=machine.data_root,
            **pipeline.dataset.options(),
        )
    wanted = feature_spec(
        backbone=section.backbone,
        weights=section.weights,
        layer=section.layer,
        levels=section.levels,
        pooling=section.pooling,
        scales=section.scales,
        view=section.view,
        flip=section.flip,
        precision=section.precision,
        storage=section.storage,
        weights_dir=machine.weights_dir,
        memo_dir=machine.cache_dir,
    )
    experiment = Experiment(name, pipeline, machine, dataset, wanted, protocol, settings)
    if section.precision != "auto":
        check_precision(machine.runtime, section.precision)
        return experiment
    from spptransfer.experiment.precision import settle

    return settle(replace(experiment, undecided=True))


def weights_path(experiment: Experiment) -> Path | None:
    """Where the weights lie, absolute; None for random ones, which have no place."""
    weights = experiment.pipeline.features.weights
    if weights_files.random_seed(weights) is not None:
        return None
    backbone, folder = experiment.wanted.backbone, experiment.machine.weights_dir
    return weights_files.path_of(backbone, weights, folder).resolve()


def _check_machine(machine: Machine) -> None:
    """Check names that would otherwise be looked at only once there is something to compute."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]*))?", machine.device):
        raise ConfigError(
            f"device: '{machine.device}' is unknown; allowed: auto, cpu, cuda, cuda:N"
        )
    engine = check_engine(machine.engine)
    if machine.scheduler is not None and engine != "dask":
        raise ConfigError(
            f"scheduler: '{machine.scheduler}' goes with engine dask only, not with '{engine}'; "
            "on the command line: --engine dask --scheduler ADDRESS"
        )
    check_runtime(machine.runtime)
    check_device(machine.runtime, machine.device)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40] or "images"
