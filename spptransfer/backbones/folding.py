"""Batch normalisation with fixed statistics becomes part of the convolution before it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch norm into the convolution registered right before it, in place.

    The folded parameters are computed in float64 and rounded once; each folded batch norm is
    replaced by an identity. Only the statistics of evaluation are represented, so the network
    cannot be trained any further.

    Parameters
    ----------
    network : Module
        Network in which a batch norm that follows a convolution among its parent's children is
        applied directly to that convolution's output.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> fold_batch_norms(network)
    >>> network[1]
    Identity()
    """
    for parent in list(network.modules()):
        for (_, conv), (name, norm) in pairwise(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give the convolution the weights and the bias that include the normalisation."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
