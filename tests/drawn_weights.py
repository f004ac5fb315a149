"""Weights drawn for a trunk that was built without numbers."""

import torch
from torch import nn

from spptransfer.backbones.base import fold_batch_norms


def draw_weights(trunk: nn.Sequential) -> None:
    """Weights that keep the size of the numbers from layer to layer; batch norms are folded in."""
    trunk.to_empty(device="cpu").eval().requires_grad_(False)
    torch.manual_seed(0)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(1.5, 3.0)
    fold_batch_norms(trunk)
