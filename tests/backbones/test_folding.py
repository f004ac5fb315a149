from __future__ import annotations

import pytest
import torch
from torch import nn

from spptransfer.backbones.loading import fold_batch_norms


def seasoned_norm(channels, generator):
    """A batch norm whose statistics are far from those it starts with."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.data.normal_(generator=generator)
    norm.bias.data.normal_(generator=generator)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(1e-4, 10, generator=generator)
    return norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_folded_pair_computes_the_same(bias, groups):
    generator = torch.Generator().manual_seed(0)
    pair = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups, bias=bias), seasoned_norm(8, generator))
    pair = pair.double().eval()
    maps = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64)
    expected = pair(maps)
    fold_batch_norms(pair)
    assert isinstance(pair[1], nn.Identity)
    assert torch.allclose(pair(maps), expected, atol=1e-12)
