"""The feature spec: everything that determines a feature's value, and its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from spptransfer.errors import CacheError, ConfigError, one_of
from spptransfer.images import LONGEST, VIEWS, View
from spptransfer.pyramid import check_levels, determining_levels, source_level
from spptransfer.pyramid.bins import Pooling, check_pooling

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Storage = Literal["float32", "float16"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

# Raised whenever a release computes other values from the same inputs.
NUMERICS_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """All that determines a feature's value, and nothing else.

    Paths, batch size, device, runtime and number of workers are not part of it; two caches with
    the same `fingerprint` hold interchangeable rows.

    Parameters
    ----------
    backbone : str
        Name in `spptransfer.backbones`.
    weights_sha256 : str
        Hash of the weights' content.
    layers : tuple of str
        Layers of the backbone, by name; each is stored on its own.
    vectors : tuple of str
        Those of them that are vectors, such as fully connected layers, and have no levels.
    levels : tuple of int
        The determining levels of the maps' pyramid, finest first; empty if all are vectors.
        Levels that follow from others are dropped, so that equal features have equal specs.
    pooling : {"max", "mean"}
        Pooling in every bin.
    scales : tuple of int
        Lengths of the smaller side in pixels, ascending; each is stored on its own.
    view : {"full", "center_crop", "warp"}
        What of the image is looked at.
    grid, longest : int
        What the sides of a view are multiples of, and the most that the longer one has, in
        shorter ones.
    flip : bool
        Whether features are averaged with those of the mirrored image.
    precision : {"float32", "bfloat16", "float16"}
        Arithmetic of the backbone.
    storage : {"float32", "float16"}
        Type of the stored numbers.
    preprocessing : dict
        Decoding and resizing as `spptransfer.images.description` has it, mean and std.
    numerics : int
        Version of this package's own arithmetic.

    Raises
    ------
    ConfigError
        If layers, levels, scales, pooling, view, precision or storage are not valid.

    Examples
    --------
    >>> spec = FeatureSpec(
    ...     backbone="alexnet", weights_sha256="e7811f10", layers=("spp",), levels=(6, 3, 2, 1)
    ... )
    >>> spec.levels, spec.scales
    ((6,), (224,))
    >>> spec.fingerprint == dataclasses.replace(spec, flip=True).fingerprint
    False
    """

    backbone: str
    weights_sha256: str
    layers: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    levels: tuple[int, ...] = (6,)
    pooling: Pooling = "max"
    scales: tuple[int, ...] = (224,)
    view: View = "full"
    grid: int = 1
    longest: int = LONGEST
    flip: bool = False
    precision: Precision = "float32"
    storage: Storage = "float32"
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numerics: int = NUMERICS_VERSION

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        one_of("view", self.view, VIEWS)
        one_of("precision", self.precision, PRECISIONS)
        one_of("storage", self.storage, STORAGES)
        layers = tuple(sorted(check_layers(self.layers)))
        vectors = tuple([name for name in layers if name in self.vectors or not self.levels])
        levels = stored_levels(self.levels, self.pooling, self.flip) if vectors != layers else ()
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "scales", tuple(sorted(check_scales(self.scales))))
        # Through JSON, so that a spec equals itself after it was read back from a file.
        object.__setattr__(self, "preprocessing", json.loads(json.dumps(self.preprocessing)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields."""
        values = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        """Rebuild a spec from `to_dict`'s values."""
        try:
            spec = cls(**values)
            texts = (spec.backbone, spec.weights_sha256, *spec.layers)
            if not all(isinstance(text, str) for text in texts) or type(spec.flip) is not bool:
                raise TypeError("a field is of another type")
        except (TypeError, ValueError) as error:
            raise CacheError(f"not a feature spec this version knows: {error}") from error
        return spec

    @property
    def origin(self) -> str:
        """Backbone and layers in words."""
        return f"{self.backbone} {' + '.join(self.layers)}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON of all fields."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: FeatureSpec) -> list[str]:
        """List in words the fields that differ, with both values."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {_plain(mine[name])} is not {_plain(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]

    def covers(self, other: FeatureSpec) -> bool:
        """Tell whether rows of this spec determine those of another exactly.

        That is so if they differ at most in layers, levels and scales, and every one of the other
        spec's is stored here or follows from what is stored.
        """
        stored = {name: getattr(self, name) for name in ("layers", "vectors", "levels", "scales")}
        if not other.levels:  # how maps are pooled is nothing to vectors
            stored["pooling"] = self.pooling
        if dataclasses.replace(other, **stored) != self:
            return False
        if set(other.vectors) != set(self.vectors).intersection(other.layers):
            return False
        levels = all(self.source_of(level) for level in other.levels)
        layers, scales = set(other.layers), set(other.scales)
        return levels and layers <= set(self.layers) and scales <= set(self.scales)

    def levels_of(self, layer: str) -> tuple[int | None, ...]:
        """Return the stored levels of a layer; a vector is stored under None."""
        return (None,) if layer in self.vectors else self.levels

    def source_of(self, level: int) -> int | None:
        """Return the stored level from which `level` follows exactly, None where none does.

        Examples
        --------
        >>> spec = FeatureSpec(backbone="alexnet", weights_sha256="e7", layers=("spp",))
        >>> spec.source_of(2), spec.source_of(4)
        (6, None)
        """
        return source_level(level, self.levels, _derivation(self.pooling, self.flip))


def shared_part(spec: FeatureSpec) -> FeatureSpec:
    """Return what specs that one pass of a network can serve have in common, whatever the pass."""
    return dataclasses.replace(
        spec,
        layers=("",),
        vectors=(),
        levels=(6,),
        pooling="max",
        scales=(224,),
        view="full",
        storage="float32",
    )


def layers_of(specs: Iterable[FeatureSpec]) -> tuple[str, ...]:
    """Return the layers of some specs, each once."""
    return tuple(dict.fromkeys([layer for spec in specs for layer in spec.layers]))


def check_layers(layers: str | Sequence[str]) -> tuple[str, ...]:
    """Validate names of layers, one or several, and keep their order."""
    several = isinstance(layers, Sequence) and not isinstance(layers, str)
    checked: tuple[Any, ...] = tuple(layers) if several else (layers,)
    if not checked:
        raise ConfigError("layer: [] must be a layer's name or a list of names, as [fc6, spp]")
    if len(set(map(str, checked))) < len(checked):
        raise ConfigError(f"layer: {list(checked)} holds a layer twice")
    return checked


def stored_levels(
    levels: Iterable[int], pooling: Pooling = "max", flip: bool = False
) -> tuple[int, ...]:
    """Validate a pyramid and reduce it to the levels that have to be stored.

    Examples
    --------
    >>> stored_levels([6, 3, 2, 1]), stored_levels([6, 3, 2, 1], flip=True)
    ((6,), (6, 3, 2, 1))
    """
    return determining_levels(check_levels(levels), _derivation(pooling, flip))


def _derivation(pooling: Pooling, flip: bool) -> Pooling:
    """Rule by which levels follow; a mean over mirror images behaves like mean pooling."""
    return "mean" if flip else pooling


def check_scales(scales: Iterable[int]) -> tuple[int, ...]:
    """Validate scales and keep their order."""
    checked = tuple(scales)
    if not checked or any(type(scale) is not int or scale < 1 for scale in checked):
        raise ConfigError(f"scales: {list(checked)} must be pixels of the smaller side, as [224]")
    if len(set(checked)) < len(checked):
        raise ConfigError(f"scales: {list(checked)} holds a scale twice")
    return checked


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
