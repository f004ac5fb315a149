"""Images to features without a cache, as a scikit-learn transformer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from spptransfer import backbones
from spptransfer.system import count_processors
from spptransfer.cache.rows import OK
from spptransfer.cache.selection import COMBINES, Selection, feature_names
from spptransfer.errors import ConfigError, ImageError
from spptransfer.runtimes import count_callers
from spptransfer.specify import feature_spec, one_of, whole_numbers

if TYPE_CHECKING:
    from spptransfer.extraction.batches import Source
    from spptransfer.extraction.compute import FeatureComputer

CHUNK = 128


class DirectRows(NamedTuple):
    """Features of a run of images, without a cache.

    `matrix` holds one row per image, NaN where `errors` (by position) says why there is none.
    """

    sources: tuple[Source, ...]
    matrix: npt.NDArray[np.float32]
    errors: dict[int, str]


def stream_features(
    sources: Iterable[Source],
    computer: FeatureComputer,
    selection: Selection,
    jobs: int | None = None,
) -> Iterator[DirectRows]:
    """Compute features chunk by chunk, in the order of the images.

    Parameters
    ----------
    sources : iterable of Path or ndarray of uint8
        Files or arrays (H, W), (H, W, 3) or (H, W, 4).
    computer : FeatureComputer
        Runs the backbone.
    selection : Selection
        Levels and scales wanted.
    jobs : int, optional
        Threads, by default one per processor that we may use.

    Yields
    ------
    DirectRows
        Up to 128 rows.
    """
    from spptransfer.extraction.parts import PartMaker, PartSettings
    from spptransfer.extraction.plan import Part
    from spptransfer.extraction.progress import Clock

    workers = count_callers(computer.runtime, jobs or count_processors())
    remaining = iter(sources)
    settings = PartSettings(Path(), selection.spec, selection.channels, dataset="")
    with PartMaker(settings, computer, Clock(workers, workers), workers) as maker:
        while chunk := tuple(islice(remaining, CHUNK)):
            names = tuple(str(number) for number in range(len(chunk)))
            rows, blocks = maker.compute(Part(0, names, chunk))
            matrix = np.empty((len(chunk), selection.width), dtype=np.float32)
            selection.fill(matrix, blocks.__getitem__)
            failed = np.flatnonzero(rows.status != OK)
            yield DirectRows(chunk, matrix, {int(i): rows.error[i] for i in failed})


class SPPFeatures(TransformerMixin, BaseEstimator):
    """Turn images of any size into spatial-pyramid features, as a scikit-learn transformer.

    Parameters
    ----------
    backbone : str, default="alexnet"
        A name that `spptransfer.backbones.names` lists.
    weights : str or path-like, default="imagenet"
        Name in the catalogue, a ``.safetensors`` or ``.pth`` file, or ``"random:SEED"``. Loaded
        when first needed, never by the constructor.
    layer : str, default="spp"
        A layer of the backbone; ``"spp"`` is its last map, pooled by the pyramid.
    levels : sequence of int, default=(6, 3, 2, 1)
        Levels of the pyramid, in the order of the columns; without any, the whole map of a
        ``center_crop`` or ``warp``, channel by channel. Fully connected layers ignore it: they
        use the pyramid that they were trained with.
    pooling : {"max", "mean"}, default="max"
        What is taken in a bin.
    scales : sequence of int, default=(224,)
        Lengths of the image's smaller side, in pixels.
    view : {"full", "center_crop", "warp"}, default="full"
        The whole image, the central square of it, or the image squashed to a square.
    combine : {"concat", "mean", "max"}, default="concat"
        What becomes of several scales.
    flip : bool, default=False
        Average with the features of the mirrored image.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the backbone; ``"auto"`` is float32.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    runtime : {"torch", "openvino", "onnxruntime"}, default="torch"
        Who computes the network's maps; the others than torch on the CPU only.
    n_jobs : int, optional
        Threads, by default one per processor that we may use.

    Attributes
    ----------
    spec_ : FeatureSpec
        All that determines the values, with the weights' hash.
    n_features_out_ : int
        Length of a feature vector.

    Notes
    -----
    Features do not depend on the batch that an image shares: images are grouped by their exact
    size after the resize, never padded or squashed.

    Examples
    --------
    >>> import numpy as np
    >>> spp = SPPFeatures("squeezenet1_1", "random:0", levels=[2, 1], scales=[64])
    >>> photos = [np.zeros((80, 120, 3), np.uint8), np.zeros((90, 60), np.uint8)]
    >>> spp.fit_transform(photos).shape
    (2, 2560)
    """

    def __init__(
        self,
        backbone: str = "alexnet",
        weights: str | os.PathLike[str] = "imagenet",
        *,
        layer: str = "spp",
        levels: Sequence[int] = (6, 3, 2, 1),
        pooling: str = "max",
        scales: Sequence[int] = (224,),
        view: str = "full",
        combine: str = "concat",
        flip: bool = False,
        precision: str = "auto",
        device: str = "auto",
        runtime: str = "torch",
        n_jobs: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.levels = levels
        self.pooling = pooling
        self.scales = scales
        self.view = view
        self.combine = combine
        self.flip = flip
        self.precision = precision
        self.device = device
        self.runtime = runtime
        self.n_jobs = n_jobs

    def fit(self, X: Any = None, y: Any = None) -> SPPFeatures:
        """Check the parameters and load the network; the images are not looked at.

        Parameters
        ----------
        X, y : ignored

        Returns
        -------
        SPPFeatures
            Itself.

        Raises
        ------
        ConfigError
            If a parameter is not allowed.
        WeightsError
            If the weights are missing or do not fit the backbone.
        """
        self._choose()
        self._load()
        return self

    def _choose(self) -> None:
        """Check the parameters, once for each setting of them; nothing here is learned."""
        given = repr(self.get_params())
        if given == getattr(self, "_chosen", None):
            return
        self.spec_ = feature_spec(
            backbone=self.backbone,
            weights=self.weights,
            layer=self.layer,
            levels=self.levels,
            pooling=self.pooling,
            scales=self.scales,
            view=self.view,
            flip=self.flip,
            precision=self.precision,
        )
        _check_machine(self.device, self.n_jobs)
        channels = backbones.describe(self.backbone).layer(self.layer).channels
        levels = whole_numbers("levels", self.levels, "[6, 3, 2, 1]")
        chosen = (levels or self.spec_.levels) if self.spec_.levels else None
        scales = whole_numbers("scales", self.scales, "[224]")
        combine = one_of("combine", self.combine, COMBINES)
        self._selection = Selection.choose(self.spec_, channels, chosen, scales, combine)
        self.n_features_out_ = self._selection.width
        self.__dict__.pop("_computer", None)
        self._chosen = given

    def _load(self) -> None:
        if hasattr(self, "_computer"):
            return
        from spptransfer.extraction.compute import FeatureComputer

        network = backbones.load(self.backbone, self.weights, layer=self.layer)
        self._computer = FeatureComputer(
            network, self.spec_, self.device, runtime=self.runtime, threads=self.n_jobs
        )

    def transform(self, X: Iterable[str | os.PathLike[str] | npt.NDArray[np.uint8]]) -> Any:
        """Compute the features of images.

        Parameters
        ----------
        X : iterable of path-like or ndarray of uint8
            Files, or arrays of shape (H, W), (H, W, 3) or (H, W, 4).

        Returns
        -------
        ndarray of float32, shape (n_images, n_features_out_)

        Raises
        ------
        ImageError
            If an image cannot be read; the message names it.
        """
        sources = [_as_source(image) for image in _as_list(X)]
        self._choose()
        self._load()
        parts: list[npt.NDArray[np.float32]] = []
        for chunk in stream_features(sources, self._computer, self._selection, self.n_jobs):
            for position, error in chunk.errors.items():
                first = sum(len(part) for part in parts)
                raise ImageError(f"{_name(sources, first + position)}: {error}")
            parts.append(chunk.matrix)
        return np.concatenate(parts) if parts else np.empty((0, self.n_features_out_), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Name the columns by scale, level, channel, bin row and bin column.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of str objects
        """
        self._choose()
        return np.array(
            feature_names(self._selection, whole_map=not len(self.levels)), dtype=object
        )

    def __getstate__(self) -> dict[str, Any]:
        # A network is loaded again where it is needed; weights have no place in a pickle.
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_computer", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def _check_machine(device: Any, n_jobs: Any) -> None:
    """Refuse what is neither a device's name nor a number of threads."""
    if not isinstance(device, str):
        raise ConfigError(f"device: {device!r} is unknown; allowed: auto, cpu, cuda, cuda:N")
    is_number = isinstance(n_jobs, (int, np.integer)) and not isinstance(n_jobs, bool)
    if n_jobs is not None and not (is_number and n_jobs >= 1):
        raise ConfigError(
            f"n_jobs: {n_jobs!r} must be a whole number of at least 1, or None for a thread per "
            "processor"
        )


def _as_list(X: Any) -> list[Any]:
    if isinstance(X, (str, os.PathLike)):
        raise ImageError(f"X must be a list of images, as ['{X}']")
    if not isinstance(X, Iterable):
        raise ImageError(f"X must be a list of images, not {type(X).__name__}")
    return list(X)


def _as_source(image: Any) -> Source:
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    if isinstance(image, np.ndarray):
        return image
    raise ImageError(f"an image must be a path or an array of uint8, not {type(image).__name__}")


def _name(sources: Sequence[Source], position: int) -> str:
    source = sources[position]
    return f"'{source}'" if isinstance(source, Path) else f"image {position}"
