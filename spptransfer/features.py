"""Images to features without a cache, as a scikit-learn transformer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from spptransfer import backbones
from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.backbones.catalogue import IMAGENET_MEAN, IMAGENET_STD
from spptransfer.backbones.probe import probe
from spptransfer.cache.reading import COMBINES, Selection, feature_names
from spptransfer.errors import ConfigError, ImageError, one_of
from spptransfer.runtimes import ComputeOptions, check_options
from spptransfer.samples import is_tensor, to_samples
from spptransfer.spec import check_layers
from spptransfer.specify import feature_spec, levels_and_scales

if TYPE_CHECKING:
    from spptransfer.extraction.extractor import Extractor

CHUNK = 128

# An image is given as a file or as its samples.
Source = Path | npt.NDArray[np.uint8]


class DirectRows(NamedTuple):
    """Features of a run of images, without a cache.

    `matrix` holds one row per image, NaN where `errors` (by position) says why there is none.
    """

    sources: tuple[Source, ...]
    matrix: npt.NDArray[np.float32]
    errors: dict[int, str]


def stream_features(
    sources: Iterable[Source], selection: Selection, extractor: Extractor
) -> Iterator[DirectRows]:
    """Compute features chunk by chunk, in the order of the images."""
    remaining = iter(sources)
    while chunk := tuple(islice(remaining, CHUNK)):
        (rows,) = extractor.compute(chunk)
        matrix = np.empty((len(chunk), selection.width), dtype=np.float32)
        selection.fill(matrix, rows.features.__getitem__)
        yield DirectRows(chunk, matrix, rows.failures())


class SPPFeatures(TransformerMixin, BaseEstimator):
    """Turn images of any size into spatial-pyramid features, as a scikit-learn transformer.

    Parameters
    ----------
    backbone : str, torch.nn.Module or Backbone, default="alexnet"
        A name that `spptransfer.backbones.names` lists, or ``"timm/NAME"``, a network of your
        own, or one that `backbones.from_module` or `backbones.load` made. Your network stays as
        it is.
    weights : str or path-like, optional
        For a name: weights in the catalogue, a ``.safetensors`` or ``.pth`` file, or
        ``"random:SEED"``; by default the backbone's own official ones. Loaded when first needed,
        never by the constructor.
    layer : str or sequence of str, default="spp"
        A layer of the backbone, or several, whose features stand side by side in this order;
        ``"spp"`` is the last map of those that have names. For a `torch.nn.Module` the name of a
        module in it, whose output is a map or a vector.
    mean, std : sequence of 3 floats, optional
        For a `torch.nn.Module`: what RGB in [0, 1] is normalised with; ImageNet's by default.
    levels : sequence of int, optional
        Levels of the pyramid, in the order of the columns, by default the backbone's own:
        (6, 3, 2, 1), or (3, 2, 1) of 1,024 channels and more. With an empty list, the whole map of
        a ``center_crop`` or ``warp``, channel by channel. Fully connected layers ignore it: they
        use the pyramid that they were trained with.
    pooling : {"max", "mean"}, default="max"
        What is taken in a bin.
    scales : sequence of int, optional
        Lengths of the image's smaller side, in pixels, by default the backbone's own: mostly 224.
    view : {"full", "center_crop", "warp"}, default="full"
        The whole image, the central square of it, or the image squashed to a square.
    combine : {"concat", "mean", "max"}, default="concat"
        What becomes of several scales.
    flip : bool, default=False
        Average with the features of the mirrored image.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the backbone; ``"auto"`` is float32.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    runtime : {"auto", "torch", "openvino", "onnxruntime"}, default="auto"
        Who computes the network's maps; see `spptransfer.runtimes`.
    n_jobs : int, optional
        Threads, by default one per processor that we may use.

    Attributes
    ----------
    spec_ : FeatureSpec
        All that determines the values, with the weights' hash.
    layers_ : tuple of str
        The layers of the columns, in their order.
    levels_, scales_ : tuple of int
        The levels and scales of the columns, in their order.
    n_features_out_ : int
        Length of a feature vector.
    probe_ : ndarray of float32, shape (n_layers, 64)
        What the backbone makes of a fixed image, by which a model knows it again.

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

    A network of your own:

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU())
    >>> SPPFeatures(net, layer="1", levels=[2, 1], scales=[64]).fit_transform(photos).shape
    (2, 40)
    """

    def __init__(
        self,
        backbone: Any = "alexnet",
        weights: str | os.PathLike[str] | None = None,
        *,
        layer: str | Sequence[str] = "spp",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        levels: Sequence[int] | None = None,
        pooling: str = "max",
        scales: Sequence[int] | None = None,
        view: str = "full",
        combine: str = "concat",
        flip: bool = False,
        precision: str = "auto",
        device: str = "auto",
        runtime: str = "auto",
        n_jobs: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights: Any = weights
        self.layer = layer
        self.mean = mean
        self.std = std
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
        if not isinstance(self.backbone, str):
            self.__dict__.pop("_chosen", None)  # it may have been trained meanwhile
        self._choose()
        self.probe_ = probe(self._load().runtime.backbone, self.spec_.layers)
        return self

    def _choose(self) -> None:
        """Check the parameters, once for each setting of them; nothing here is learned."""
        given = [(name, id(value), repr(value)) for name, value in self.get_params().items()]
        if given == getattr(self, "_chosen", None):
            return
        self.layers_ = check_layers(self.layer)
        self._backbone = self._named_or_given()
        info = self._backbone.info
        self.levels_, self.scales_ = levels_and_scales(info, self.layers_, self.levels, self.scales)
        self.spec_ = feature_spec(
            self._backbone,
            layer=self.layers_,
            levels=self.levels_,
            pooling=self.pooling,
            scales=self.scales_,
            view=self.view,
            flip=self.flip,
            precision=self.precision,
        )
        self._options = ComputeOptions(self.device, self.runtime, _threads(self.n_jobs))
        check_options(self._options, self.spec_.precision)
        self._selection = Selection.choose(
            self.spec_,
            info.channels_of(self.layers_),
            (self.levels_ or self.spec_.levels) if self.spec_.levels else None,
            self.scales_,
            one_of("combine", self.combine, COMBINES),
            self.layers_,
        )
        self.n_features_out_ = self._selection.width
        self._extractor: Extractor | None = None
        self._chosen = given

    def _named_or_given(self) -> Backbone | BackboneRef:
        """Return the backbone that is named, or wrap the module that was given."""
        if isinstance(self.backbone, str):
            if self.mean is not None or self.std is not None:
                raise ConfigError("mean and std go with a module; a named backbone has its own")
            return BackboneRef(self.backbone, "" if self.weights is None else self.weights)
        if hasattr(self.backbone, "maps_of"):
            found: Backbone = self.backbone
            return found
        return backbones.from_module(
            self.backbone,
            self.layers_,
            mean=IMAGENET_MEAN if self.mean is None else self.mean,
            std=IMAGENET_STD if self.std is None else self.std,
        )

    def _load(self) -> Extractor:
        """Load the network and make a runtime ready for it, once."""
        if self._extractor is None:
            from spptransfer.extraction.extractor import Extractor  # imports torch

            self._extractor = Extractor([self.spec_], self._backbone, self._options)
        return self._extractor

    def transform(self, X: Iterable[Any]) -> Any:
        """Compute the features of images.

        Parameters
        ----------
        X : iterable of path-like, PIL image, ndarray or torch.Tensor
            Files; PIL images; or samples of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4
            channels, in uint8 or in floating point from 0 to 1. Features are those of the file
            with such content, but for JPEG files of 6 times the scale and more, which are decoded
            at a fraction of their size.

        Returns
        -------
        ndarray of float32, shape (n_images, ``n_features_out_``)

        Raises
        ------
        ImageError
            If an image cannot be read, or is none; the message names it and what is allowed.
        """
        sources = iter_sources(X)
        self._choose()
        found: list[npt.NDArray[np.float32]] = []
        with self._load() as extractor:
            for chunk in stream_features(sources, self._selection, extractor):
                for position, error in chunk.errors.items():
                    number = sum(len(matrix) for matrix in found) + position
                    source = chunk.sources[position]
                    name = f"'{source}'" if isinstance(source, Path) else f"image {number}"
                    raise ImageError(f"{name}: {error}")
                found.append(chunk.matrix)
        return np.concatenate(found) if found else np.empty((0, self.n_features_out_), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Name the columns by layer, scale, level, channel, bin row and bin column.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of str objects
        """
        self._choose()
        return np.array(feature_names(self._selection, whole_map=not self.levels_), dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        # A named network is loaded again where it is needed; its weights have no place in a pickle.
        state: dict[str, Any] = dict(super().__getstate__())
        for name in ("_backbone", "_extractor", "_chosen"):
            state.pop(name, None)
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


def _threads(n_jobs: Any) -> int | None:
    is_count = isinstance(n_jobs, (int, np.integer)) and not isinstance(n_jobs, bool)
    if n_jobs is not None and not (is_count and n_jobs >= 1):
        raise ConfigError(f"n_jobs: {n_jobs!r} must be a whole number of at least 1, or None")
    return None if n_jobs is None else int(n_jobs)


def as_sources(images: Any, name: str = "X") -> list[Source]:
    """Return a list of images as paths and samples, or say what it is instead."""
    return list(iter_sources(images, name))


def iter_sources(images: Any, name: str = "X") -> Iterator[Source]:
    """Check that these are several images, and yield them one by one, as `as_sources` does."""
    if isinstance(images, (str, os.PathLike)):
        raise ImageError(f"{name} must be a list of images, as ['{images}']")
    if isinstance(images, Image.Image):
        raise ImageError(f"{name} must be a list of images, as [image], not a single one")
    shape = tuple(getattr(images, "shape", ()))
    has_channels = len(shape) == 3 and not {shape[0], shape[2]}.isdisjoint((3, 4))
    if (len(shape) == 2 or has_channels) and (isinstance(images, np.ndarray) or is_tensor(images)):
        raise ImageError(f"{name} must be a list of images, as [image], not one of shape {shape}")
    if not isinstance(images, Iterable):
        raise ImageError(f"{name} must be a list of images, not {type(images).__name__}")
    return map(_as_source, itertools.count(), images)


def _as_source(number: int, image: Any) -> Source:
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    try:
        return to_samples(image)
    except ImageError as error:
        raise ImageError(f"image {number}: {error}") from error
