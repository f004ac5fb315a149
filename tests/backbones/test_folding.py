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


def test_what_only_resembles_a_convolution_and_its_batch_norm_is_left_alone():
    class WithActivation(nn.BatchNorm2d):
        def forward(self, maps):
            return super().forward(maps).relu()

    class Padded(nn.Conv2d):
        def forward(self, maps):
            return super().forward(maps).abs()

    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        seasoned_norm(3, generator),
        nn.Conv2d(3, 4, 1),
        WithActivation(4),
        Padded(4, 4, 1),
        seasoned_norm(4, generator),
    ).eval()
    maps = torch.randn(2, 3, 5, 5, generator=generator)
    expected = network(maps)
    fold_batch_norms(network)
    assert network(maps).equal(expected)


def test_a_batch_norm_without_statistics_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="without running statistics"):
        fold_batch_norms(network)
