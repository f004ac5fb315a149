"""Several caches filled from one pass: which specs can share it, and what is left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.extraction.plan import Part, Plan
from spptransfer.spec import FeatureSpec

# What specs may differ in: none of it changes the network or what it is given at one scale.
FREE = ("layer", "levels", "pooling", "scales", "view", "storage")


def check_alike(specs: Sequence[FeatureSpec]) -> None:
    """Refuse specs that no single pass of a network can serve.

    Raises
    ------
    ConfigError
        If there is none, or two differ in more than layer, levels, pooling, scales, view and
        storage; the message names each field with both values.
    """
    if not specs:
        raise ConfigError("at least one feature spec is needed")
    for other in specs[1:]:
        differences = shared_part(specs[0]).differences(shared_part(other))
        if differences:
            raise ConfigError(
                f"these features cannot be extracted together: {'; '.join(differences)}"
            )


def shared_part(spec: FeatureSpec) -> FeatureSpec:
    """What specs that one pass can serve have in common: equal for any two of them.

    Examples
    --------
    >>> conv4 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="conv4", scales=(392,))
    >>> fc6 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="fc6", levels=())
    >>> shared_part(conv4) == shared_part(fc6)
    True
    """
    plain = FeatureSpec(backbone=spec.backbone, weights_sha256="", layer="")
    return dataclasses.replace(spec, **{name: getattr(plain, name) for name in FREE})


def label_of(specs: Sequence[FeatureSpec]) -> str:
    """Say in short what is computed in one pass.

    Examples
    --------
    >>> conv4 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="conv4")
    >>> fc6 = FeatureSpec(backbone="alexnet", weights_sha256="e7", layer="fc6", levels=())
    >>> label_of([conv4, fc6, conv4])
    'alexnet conv4, fc6'
    """
    return f"{specs[0].backbone} {', '.join(dict.fromkeys(spec.layer for spec in specs))}"


class JointPlan:
    """What several caches lack of one dataset.

    Parameters
    ----------
    plans : sequence of Plan
        What each cache lacks.

    Attributes
    ----------
    todo : ndarray of bool, shape (n_images,)
        Which images some cache lacks, by position in the dataset.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = tuple(plans)
        self.todo = np.logical_or.reduce([plan.todo for plan in plans])

    def count_parts(self, part_rows: int) -> int:
        """Number of parts that have something to do."""
        starts = np.arange(0, len(self.todo), part_rows)
        return int(np.logical_or.reduceat(self.todo, starts).sum())

    def parts(self, part_rows: int) -> Iterator[Part]:
        """Cut the dataset, not the work left, into parts, each with what every cache lacks of it.

        A resumed run then meets the same parts, hence the same batches, as an uninterrupted one.
        And where the caches lack the same images, as after a kill, each gets the parts that it
        would get on its own.
        """
        for number, start in enumerate(range(0, len(self.todo), part_rows)):
            chosen = start + np.flatnonzero(self.todo[start : start + part_rows])
            if len(chosen):
                lack = tuple(plan.todo[chosen] for plan in self.plans)
                yield self.plans[0].part(number, chosen, lack)
