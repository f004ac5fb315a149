"""A feature spec from what a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer import backbones
from spptransfer.backbones.weights import identify
from spptransfer.errors import ConfigError
from spptransfer.images import check_view
from spptransfer.preprocessing import preprocessing_of
from spptransfer.pyramid.bins import check_pooling
from spptransfer.spec import PRECISIONS, STORAGES, FeatureSpec, check_scales, stored_levels


def feature_spec(
    *,
    backbone: str,
    weights: str | os.PathLike[str],
    layer: str = "spp",
    levels: Sequence[int] = (6, 3, 2, 1),
    pooling: str = "max",
    scales: Sequence[int] = (224,),
    view: str = "full",
    flip: bool = False,
    precision: str = "auto",
    storage: str = "float32",
    weights_dir: Path | None = None,
    memo_dir: Path | None = None,
) -> FeatureSpec:
    """Check what a user names and turn it into a feature spec.

    The weights are identified by their content; torch is not imported for that unless they are
    random.

    Parameters
    ----------
    backbone, weights, layer, levels, pooling, scales, view, flip, precision, storage
        As in `SPPFeatures` and the pipeline file.
    weights_dir, memo_dir : Path, optional
        As in `spptransfer.backbones.load`.

    Returns
    -------
    FeatureSpec

    Raises
    ------
    ConfigError
        If a name or a value is not allowed; the message says what is.
    WeightsError
        If the weights cannot be found or fetched.

    Examples
    --------
    >>> spec = feature_spec(backbone="squeezenet1_1", weights="random", scales=[64])
    >>> spec.levels, spec.precision
    ((6,), 'float32')
    """
    levels = whole_numbers("levels", levels, "[6, 3, 2, 1]")
    scales = whole_numbers("scales", scales, "[224]")
    if not isinstance(flip, (bool, np.bool_)):
        raise ConfigError(f"flip: {flip!r} must be True or False")
    if not isinstance(weights, (str, os.PathLike)):
        raise ConfigError(
            f"weights: {weights!r} must be a name of the catalogue, random:SEED or a file's path"
        )
    arithmetic = one_of("precision", precision, ("auto", *PRECISIONS))
    info = backbones.describe(backbone)
    is_map = info.layer(layer).kind == "map"
    checked = stored_levels(levels, check_pooling(pooling), flip) if len(levels) else ()
    smallest = min(check_scales(scales))
    if smallest < info.min_side:
        raise ConfigError(
            f"scales: {smallest} is too small for '{backbone}'; at least {info.min_side} pixels"
        )
    if is_map and not checked:
        checked = _whole_map(backbone, layer, scales, view)
    return FeatureSpec(
        backbone=backbone,
        weights_sha256=identify(backbone, weights, weights_dir, memo_dir=memo_dir),
        layer=layer,
        levels=checked if is_map else (),
        pooling=check_pooling(pooling) if is_map else "max",
        scales=tuple(sorted(scales)),
        view=check_view(view),
        flip=bool(flip),
        precision="float32" if arithmetic == "auto" else arithmetic,
        storage=one_of("storage", storage, STORAGES),
        preprocessing=preprocessing_of(backbone),
    )


def _whole_map(backbone: str, layer: str, scales: Sequence[int], view: str) -> tuple[int, ...]:
    """Level whose bins are the cells of a map: what ``levels: []`` stands for."""
    if check_view(view) == "full":
        raise ConfigError(
            "levels: [] takes the whole map, whose size differs from image to image with view "
            "'full'; allowed views: center_crop, warp"
        )
    if len(scales) > 1:
        raise ConfigError(f"levels: [] takes the whole map at one scale, not at {list(scales)}")
    from spptransfer.backbones.loading import map_side

    return (map_side(backbone, layer, scales[0]),)


def whole_numbers(name: str, values: Sequence[int], example: str) -> tuple[int, ...]:
    """Validate a list of numbers, numpy's among them, and keep its order.

    Parameters
    ----------
    name : str
        What is given.
    values : sequence of int, or ndarray
        Whether these are in range is for others to check.
    example : str
        A right one, to be named.

    Returns
    -------
    tuple of int

    Raises
    ------
    ConfigError
        If it is no list.

    Examples
    --------
    >>> whole_numbers("scales", np.array([224, 392]), "[224]")
    (224, 392)
    >>> whole_numbers("scales", 224, "[224]")
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: scales: 224 must be a list of whole numbers, as [224]
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    if not is_list and not (isinstance(values, np.ndarray) and values.ndim):
        raise ConfigError(f"{name}: {values!r} must be a list of whole numbers, as {example}")
    return tuple(int(each) if isinstance(each, np.integer) else each for each in values)


def one_of(name: str, value: str, allowed: Sequence[Any]) -> Any:
    """Validate a value that is one of a few words.

    Raises
    ------
    ConfigError
        If it is none of them.

    Examples
    --------
    >>> one_of("storage", "float16", ("float32", "float16"))
    'float16'
    """
    if value not in allowed:
        raise ConfigError(f"{name}: '{value}' is unknown; allowed: {', '.join(allowed)}")
    return value
