from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.pretraining.config import TrainingSection
from spptransfer.pretraining.schedule import rate


def test_the_rate_is_divided_by_10_twice_and_no_more():
    section = TrainingSection(patience=2)
    rates = [rate(section, epoch, 0.1, [0.5] * epoch) for epoch in range(9)]
    assert rates == pytest.approx([1e-2] * 3 + [1e-3] * 2 + [1e-4] * 4)


@settings(deadline=None)  # torch's scheduler is imported when it is first used
@given(
    st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_plateaus_are_those_of_torchs_scheduler(errors, patience, divisions):
    section = TrainingSection(patience=patience, divisions=divisions)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=section.learning_rate)
    # Torch's patience is the epochs that are let pass, ours the first that is not.
    plateaus = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=0.1,
        patience=patience - 1,
        threshold=1e-4,
        threshold_mode="abs",
        min_lr=section.learning_rate / 10**divisions,
        eps=0,
    )
    for epoch, error in enumerate(errors):
        plateaus.step(error)
        found = rate(section, epoch + 1, 0.1, errors[: epoch + 1])
        assert found == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_falling_error_keeps_the_rate():
    section = TrainingSection(patience=2)
    assert rate(section, 20, 0.1, [0.5 - 0.01 * epoch for epoch in range(20)]) == 0.01


def test_a_cosine_warms_up_and_falls_to_nothing():
    section = TrainingSection(epochs=10, schedule="cosine", warmup=2, learning_rate=0.1)
    rates = [rate(section, step / 10, 0.1, []) for step in range(100)]
    assert 0 < rates[0] < 0.01
    assert rates[20] == max(rates) == 0.1
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] < 1e-4
