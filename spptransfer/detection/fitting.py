"""What every training of a detector needs, be it a pipeline's, an estimator's or of one class."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer._version import __version__
from spptransfer.backbones.dilation import dilate
from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import Boxes
from spptransfer.detection.methods import open_proposer
from spptransfer.detection.objectness import Objectness
from spptransfer.detection.passes import Passes
from spptransfer.detection.proposal_cache import ProposalCache, windows_of
from spptransfer.detection.proposer import Proposer
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan, Propose, Trained, Trainer
from spptransfer.errors import ConfigError, DatasetError, ImageError
from spptransfer.extraction.maps import FeatureMaps, MapExtractor
from spptransfer.extraction.reading import Source, stamp_of
from spptransfer.files import exclusive_lock, make_folder
from spptransfer.images import array_digest, decode, from_array, read_bytes
from spptransfer.protocols.splits import deal, ranked
from spptransfer.runtimes import ComputeOptions
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

DEFAULT_C = (0.1, 1.0, 10.0)
# Images whose objects proposals that look at maps are fitted to.
FITTED = 100


def check_overlaps(settings: DetectionSection, where: str = "") -> None:
    """Refuse windows that would be positives and negatives of a class."""
    if settings.positive_overlap <= settings.negative_overlap:
        raise ConfigError(
            f"{where}positive_overlap: {settings.positive_overlap:g} must be more than "
            f"negative_overlap, which is {settings.negative_overlap:g}"
        )


def hold_out(
    objects: Sequence[Objects], n_classes: int, share: float, seed: int = 0
) -> npt.NDArray[np.intp]:
    """Choose the images that C and confidences are fitted on, with a share of each class.

    Parameters
    ----------
    objects : sequence of Objects
        In each image to train on.
    n_classes : int
        Number of classes.
    share : float
        From 0, none, to less than 1.
    seed : int, default=0
        Of the order in which images are dealt.

    Returns
    -------
    ndarray of int
        Positions of the images.

    Examples
    --------
    >>> objects = [Objects.of([[0, 0, 9, 9]], [number % 2]) for number in range(8)]
    >>> found = hold_out(objects, n_classes=2, share=0.25)
    >>> [objects[position].labels.tolist() for position in sorted(found, key=lambda k: k % 2)]
    [[0], [1]]
    """
    if not 0 <= share < 1:
        raise ConfigError(f"held_out: {share} must be a share between 0 and 1")
    order = np.array(ranked(map(str, range(len(objects))), seed, "held out"), np.intp)
    present = np.zeros((len(objects), n_classes), bool)
    for row, position in enumerate(order):
        present[row, objects[position].labels[~objects[position].difficult]] = True
    return np.sort(order[deal(present, (1 - share, share))[1]])


# ---- windows and maps ----


def open_proposals(
    settings: DetectionSection, objectness: npt.NDArray[np.float32] | None = None
) -> Proposer:
    """Return the method that proposes a detector's windows, fitted where it is known to what."""
    section = settings.proposals
    options = {"max_windows": settings.max_windows, **(section.model_extra or {})}
    proposer = open_proposer(section.name, **options)
    if isinstance(proposer, Objectness) and objectness is not None:
        return dataclasses.replace(proposer, coef=objectness)
    return proposer


def windows_in(image: Source, proposer: Proposer, maps: Sequence[FeatureMaps]) -> Boxes:
    """Propose the windows of an image: a file, or its pixels."""
    pixels = np.broadcast_to(np.uint8(0), (*maps[0].size, 3))
    if proposer.needs_pixels:
        decoded = from_array(image) if isinstance(image, np.ndarray) else decode(read_bytes(image))
        pixels = np.asarray(decoded)
    return proposer.propose(pixels, maps, id=str(image)).astype(np.float64)


def fit_proposals(
    proposer: Proposer,
    images: Sequence[Source],
    objects: Sequence[Objects],
    extractor: MapExtractor,
) -> Proposer:
    """Fit a method that looks at maps to objects of the first images; others have nothing to fit.

    Images that cannot be read are passed over.
    """
    if not isinstance(proposer, Objectness):
        return proposer

    def samples() -> Iterator[tuple[Sequence[FeatureMaps], Objects]]:
        for image, each in zip(images, objects, strict=True):
            if len(each.boxes):
                with contextlib.suppress(ImageError):
                    yield extractor.maps_of(image), each

    return proposer.fit(itertools.islice(samples(), FITTED))


def propose_in(
    images: Sequence[Source],
    proposer: Proposer,
    cache: ProposalCache | None = None,
    *,
    ids: Sequence[str] | None = None,
    progress: bool = False,
) -> Propose:
    """Return what gives an image's windows by its position; all are proposed at once if they can.

    The parameters are those of `windows_of`.
    """
    if proposer.needs_maps:
        return lambda position, maps: windows_in(images[position], proposer, maps)
    windows = list(windows_of(images, proposer, cache, ids=ids, progress=progress))
    return lambda position, maps: windows[position].astype(np.float64)


def open_maps(
    backbone: Any,
    spec: FeatureSpec,
    layers: Sequence[str],
    settings: DetectionSection,
    options: ComputeOptions,
) -> MapExtractor:
    """Return what computes the maps of a detector, dilated where its settings say so."""
    finer = backbone if settings.stride is None else dilate(backbone, settings.stride)
    return MapExtractor(finer, layers, spec.scales, precision=spec.precision, options=options)


# ---- what is kept until a training is done ----


def training_key(
    plan: Plan,
    spec: FeatureSpec,
    proposer: Proposer,
    images: Sequence[Source],
    objects: Sequence[Objects],
    held_out: Sequence[int] | npt.NDArray[np.intp],
    *others: Any,
) -> str:
    """Return the identity of a training: equal keys end in the same detector.

    `others` are plain values that what is kept beside it depends on.
    """
    digest = hashlib.sha256()
    for each in objects:
        for array in each:
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    for known in plan.normalizer.learnt().values() if plan.normalizer else ():
        digest.update(np.ascontiguousarray(known).tobytes())
    said = [
        __version__,
        spec.to_dict(),
        [dict(plan.features.channels), plan.features.levels, plan.normalize],
        [plan.n_classes, plan.C, plan.loss, repr(plan.class_weight)],
        plan.settings.model_dump(mode="json"),
        list(map(image_key, images)),
        np.asarray(held_out, np.intp).tolist(),
        proposer.key,
        digest.hexdigest(),
        others,
    ]
    return hashlib.sha256(json.dumps(said).encode("utf-8", "surrogateescape")).hexdigest()


def image_key(image: Source) -> list[Any]:
    """Return what tells an image that was changed: a file's path and stamp, an array's digest."""
    if isinstance(image, np.ndarray):
        return [array_digest(image)]
    try:
        return [str(image), *stamp_of(image)]
    except OSError:
        return [str(image)]


@contextlib.contextmanager
def kept_until_done(cache_dir: Path | None, key: str) -> Iterator[Path]:
    """Give the folder of a training's finished passes; it goes once the training is done.

    Without `cache_dir` it goes in any case.
    """
    if cache_dir is None:
        with tempfile.TemporaryDirectory(prefix="spptransfer-") as folder:
            yield Path(folder)
        return
    kept = cache_dir / f"detector-{key[:16]}"
    make_folder(cache_dir)
    with exclusive_lock(kept.with_suffix(".lock"), f"the training '{kept}'"):
        yield kept
        shutil.rmtree(kept, ignore_errors=True)


def train_detector(
    plan: Plan,
    spec: FeatureSpec,
    proposer: Proposer,
    images: Sequence[Source],
    objects: Sequence[Objects],
    held_out: float,
    extractor: MapExtractor,
    *,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Trained:
    """Train on images in memory or files, each of whose windows are proposed once.

    Parameters
    ----------
    plan : Plan
        What is trained, and how.
    spec : FeatureSpec
        How maps are computed.
    proposer : Proposer
        What proposes windows, fitted if that is needed.
    images : sequence of Path or ndarray of uint8
        What to train on; those that cannot be read are told by a warning.
    objects : sequence of Objects
        In each of them.
    held_out : float
        Share of the images that C and confidences are fitted on.
    extractor : MapExtractor
        Open; computes the maps.
    cache_dir : Path, optional
        Keeps proposals, and what is finished of a training that is stopped.
    progress : bool, default=False
        Whether to show progress bars.

    Raises
    ------
    DatasetError
        If images and objects do not fit, or there is nothing to train on.
    ConfigError
        If there is a C to choose, but no image to choose it on.
    """
    if len(images) != len(objects):
        raise DatasetError(f"{len(images)} images need as many objects, not {len(objects)}")
    positions = hold_out(objects, plan.n_classes, held_out, plan.settings.seed)
    if len(plan.C) > 1 and not len(positions):
        raise ConfigError(f"C: {list(plan.C)} leaves a choice, but no image is held out; give one")
    cache = None if cache_dir is None else ProposalCache(cache_dir / "proposals")
    key = training_key(plan, spec, proposer, images, objects, positions)
    with kept_until_done(cache_dir, key) as folder:
        passes = Passes(folder, extractor.workers, progress=progress, stop=threading.Event())
        propose = propose_in(images, proposer, cache, progress=progress)
        trainer = Trainer(plan, images, objects, propose, positions.tolist(), extractor, passes)
        trained = trainer.train()
    for position, error in trained.failures.items():
        logger.warning("image %d does not train: %s", position, error)
    return trained
