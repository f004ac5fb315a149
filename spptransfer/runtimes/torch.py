"""Maps computed by torch, with fused convolutions on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from spptransfer.backbones.loading import Backbone
from spptransfer.runtimes.network import Normalization


class TorchNetwork:
    """A backbone's trunk as torch runs it.

    Parameters
    ----------
    backbone : Backbone
        On its device, in its precision.
    normalization : Normalization
        Of the pixels.

    Examples
    --------
    >>> import torch
    >>> from spptransfer import backbones
    >>> normalization = Normalization.of({"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]})
    >>> backbone = backbones.load("squeezenet1_1", "random", layer="fire4")
    >>> network = TorchNetwork(backbone, normalization)
    >>> network.maps(torch.zeros(2, 65, 97, 3, dtype=torch.uint8), ["fire4"])["fire4"].shape
    torch.Size([2, 256, 8, 12])
    """

    def __init__(self, backbone: Backbone, normalization: Normalization) -> None:
        weight = next(backbone.trunk.parameters())
        self._backbone = backbone
        self._dtype = weight.dtype
        self._shift, self._span = (
            torch.tensor(values, dtype=torch.float64, device=weight.device).float()
            for values in (normalization.shift, normalization.span)
        )

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Compute the maps that some layers are made of, all from one pass."""
        return self._backbone.maps_of(self._normalize(pixels), layers)

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """N x H x W x 3 bytes to N x 3 x H x W numbers, without leaving channels-last memory."""
        shape, width = pixels.shape, pixels.shape[2]
        # Along whole rows: torch is slow where the last of the dimensions has three numbers.
        rows = pixels.reshape(*shape[:2], width * 3).float()
        normal = rows.sub_(self._shift.repeat(width)).div_(self._span.repeat(width))
        return normal.to(self._dtype).view(shape).permute(0, 3, 1, 2)
