"""Which feature specs one pass of a network can serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spptransfer.errors import ConfigError
from spptransfer.spec import FeatureSpec

# What specs may differ in: none of it changes the network or what it is given at one scale.
FREE = ("layer", "levels", "pooling", "scales", "view", "storage")


def check_alike(specs: Sequence[FeatureSpec]) -> None:
    """Refuse specs that no single pass of a network can serve."""
    if not specs:
        raise ConfigError("at least one feature spec is needed")
    for other in specs[1:]:
        differences = shared_part(specs[0]).differences(shared_part(other))
        if differences:
            raise ConfigError(
                f"these features cannot be extracted together: {'; '.join(differences)}"
            )


def shared_part(spec: FeatureSpec) -> FeatureSpec:
    """Return what specs that one pass can serve have in common: equal for any two of them.

    Examples
    --------
    >>> conv4 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="conv4", scales=(392,))
    >>> fc6 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="fc6", levels=())
    >>> shared_part(conv4) == shared_part(fc6)
    True
    """
    plain = FeatureSpec(backbone=spec.backbone, weights_sha256="", layer="")
    return dataclasses.replace(spec, **{name: getattr(plain, name) for name in FREE})


def layers_of(specs: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """Return the layers of some specs, each once.

    Examples
    --------
    >>> conv4 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="conv4")
    >>> fc6 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="fc6", levels=())
    >>> layers_of([conv4, fc6, conv4])
    ('conv4', 'fc6')
    """
    return tuple(dict.fromkeys(spec.layer for spec in specs))
