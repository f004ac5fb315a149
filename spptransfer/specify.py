"""A feature spec from what a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer import images
from spptransfer.backbones import Backbone, BackboneInfo, BackboneRef, map_side
from spptransfer.backbones.probe import Probe, difference, probe
from spptransfer.errors import ConfigError, ModelError, WeightsError, one_of
from spptransfer.images import VIEWS, View, view_size
from spptransfer.pyramid.bins import check_pooling
from spptransfer.spec import (
    NUMERICS_VERSION,
    PRECISIONS,
    STORAGES,
    FeatureSpec,
    check_layers,
    check_scales,
    stored_levels,
)


def feature_spec(
    backbone: Backbone | BackboneRef,
    *,
    layer: str | Sequence[str] = "spp",
    levels: Sequence[int] | None = None,
    pooling: str = "max",
    scales: Sequence[int] | None = None,
    view: str = "full",
    flip: bool = False,
    precision: str = "auto",
    storage: str = "float32",
) -> FeatureSpec:
    """Check what a user names and turn it into a feature spec.

    Parameters
    ----------
    backbone : Backbone or BackboneRef
        The network, loaded or not: weights are known by their content, and torch is not imported
        for that unless they are random.
    layer, levels, pooling, scales, view, flip, precision, storage
        As in `SPPFeatures` and the pipeline file; ``precision="auto"`` stands for float32 here.

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
    >>> spec = feature_spec(BackboneRef("squeezenet1_1", "random"), scales=[64])
    >>> spec.levels, spec.precision
    ((6,), 'float32')
    """
    info, layers = backbone.info, check_layers(layer)
    levels, scales = levels_and_scales(info, layers, levels, scales)
    scales = check_scales(scales)
    if not isinstance(flip, (bool, np.bool_)):
        raise ConfigError(f"flip: {flip!r} must be True or False")
    arithmetic: Any = one_of("precision", precision, ("auto", *PRECISIONS))
    vectors = tuple([name for name in layers if info.layer(name).kind == "vector"])
    maps = [name for name in layers if name not in vectors]
    checked = stored_levels(levels, check_pooling(pooling), flip) if levels else ()
    shown = one_of("view", view, VIEWS)
    check_sides(info, scales, shown)
    if maps and not checked:
        checked = _whole_map(backbone, maps, scales, shown)
    return FeatureSpec(
        backbone=info.name,
        weights_sha256=weights_sha256(backbone),
        layers=layers,
        vectors=vectors,
        levels=checked,
        pooling=check_pooling(pooling) if maps else "max",
        scales=scales,
        view=shown,
        grid=info.grid,
        longest=info.longest,
        flip=bool(flip),
        precision="float32" if arithmetic == "auto" else arithmetic,
        storage=one_of("storage", storage, STORAGES),
        preprocessing=preprocessing_of(info),
    )


def levels_and_scales(
    info: BackboneInfo,
    layers: Sequence[str],
    levels: Sequence[int] | None,
    scales: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Validate lists of levels and scales, and take the backbone's own where there is none."""
    levels = info.default_levels(layers) if levels is None else levels
    scales = info.default_scales if scales is None else scales
    return whole_numbers("levels", levels, "[6, 3, 2, 1]"), whole_numbers("scales", scales, "[224]")


def check_sides(info: BackboneInfo, scales: Sequence[int], view: View) -> None:
    """Refuse scales and views that make images which a backbone does not take."""
    only, sides = info.only_side, [view_size(1, 1, at, "warp", info.grid)[0] for at in scales]
    if only and (view == "full" or set(sides) != {only}):
        raise ConfigError(
            f"'{info.name}' takes images of {only} x {only} pixels only: "
            f"view: warp or center_crop, scales: [{only}]"
        )
    if min(sides) < info.min_side:
        raise ConfigError(
            f"scales: {min(scales)} is too small for '{info.name}'; at least {info.min_side} pixels"
        )


def weights_sha256(backbone: Backbone | BackboneRef) -> str:
    """Return the identity of a backbone's weights, loaded or not."""
    if isinstance(backbone, BackboneRef):
        return backbone.weights_sha256()
    return backbone.weights_sha256


def preprocessing_of(info: BackboneInfo) -> dict[str, Any]:
    """Describe all between a file and a backbone's input that a feature's value depends on."""
    return {**images.description(), "mean": list(info.mean), "std": list(info.std)}


def check_current(spec: FeatureSpec, info: BackboneInfo) -> None:
    """Make sure that features computed now are those that a model was trained on."""
    now = (preprocessing_of(info), info.grid, info.longest, NUMERICS_VERSION)
    if (spec.preprocessing, spec.grid, spec.longest, spec.numerics) != now:
        raise ModelError(
            "the model was trained on features of another version of spptransfer, which decoded, "
            "resized or computed images in another way: train it again"
        )


def find_backbone(
    spec: FeatureSpec,
    given: str | os.PathLike[str] | None,
    known: Path | None,
    named: str,
    weights_dir: Path | None,
) -> BackboneRef:
    """Find the weights that a model was trained with: as given, where they were, or by name.

    A `ModelError` tells of others, and of features that are computed otherwise now.
    """
    weights = given or (known if known and known.exists() else named)
    backbone = BackboneRef(spec.backbone, os.fspath(weights), weights_dir)
    try:
        found = backbone.weights_sha256()
    except WeightsError as error:
        raise ModelError(
            f"{error}; the model needs the weights of {spec.backbone} with SHA-256 "
            f"{spec.weights_sha256[:12]}: say where they are now (--weights FILE)"
        ) from error
    if found != spec.weights_sha256:
        raise ModelError(
            f"the weights '{weights}' (SHA-256 {found[:12]}) "
            f"are not those that the model was trained with ({spec.weights_sha256[:12]})"
        )
    check_current(spec, backbone.info)
    return backbone


def check_probe(backbone: Backbone, spec: FeatureSpec, known: Probe | None) -> None:
    """Refuse a backbone that computes other features than when a model was trained."""
    if known is not None and (off := difference(probe(backbone, spec.layers), known)):
        raise ModelError(
            f"'{backbone.info.name}' computes other features than when the model was trained "
            f"(they differ by {off:.1%}), as another release of the network or of torch would: "
            "train it again, or install what it was trained with"
        )


def _whole_map(
    backbone: Backbone | BackboneRef, maps: Sequence[str], scales: Sequence[int], view: View
) -> tuple[int, ...]:
    """Return the level whose bins are the cells of a map: what ``levels: []`` stands for."""
    if view == "full":
        raise ConfigError(
            "levels: [] takes the whole map, whose size differs from image to image with view "
            "'full'; allowed views: center_crop, warp"
        )
    if len(scales) > 1:
        raise ConfigError(f"levels: [] takes the whole map at one scale, not at {list(scales)}")
    if len(maps) > 1:
        raise ConfigError(f"levels: [] takes the whole map of one layer, not of {list(maps)}")
    side = view_size(1, 1, scales[0], "warp", backbone.info.grid)[0]
    return (map_side(backbone, maps[0], side),)


def whole_numbers(name: str, values: Sequence[int], example: str) -> tuple[int, ...]:
    """Validate a list of whole numbers, numpy's among them, and keep its order."""
    is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    if not is_list and not (isinstance(values, np.ndarray) and values.ndim):
        raise ConfigError(f"{name}: {values!r} must be a list of whole numbers, as {example}")
    return tuple(int(each) if isinstance(each, np.integer) else each for each in values)
