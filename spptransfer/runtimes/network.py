"""What all runtimes offer, and how they are told about pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Normalization:
    """``(pixels - shift) / span``, channel by channel.

    Attributes
    ----------
    shift, span : tuple of three floats
        In grey levels, of 0 to 255.

    Examples
    --------
    >>> Normalization.of({"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]})
    Normalization(shift=(127.5, 127.5, 127.5), span=(255.0, 255.0, 255.0))
    """

    shift: tuple[float, ...]
    span: tuple[float, ...]

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> Normalization:
        """Take it from the ``mean`` and ``std`` of a feature spec's preprocessing."""
        mean, std = preprocessing["mean"], preprocessing["std"]
        return cls(tuple(255.0 * value for value in mean), tuple(255.0 * value for value in std))


class FrozenNetwork(Protocol):
    """A backbone's trunk that any number of threads can run at once."""

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Compute the maps that some layers are made of, all from one pass.

        Parameters
        ----------
        pixels : Tensor of uint8, shape (N, H, W, 3)
            Views of one size.
        layers : sequence of str
            Layers of the backbone.

        Returns
        -------
        mapping of str to Tensor of shape (N, C, h, w)
            By layer; for a fully connected one the last map.
        """
        ...
