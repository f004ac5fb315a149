from __future__ import annotations

import pytest
import torch
from pretraining_cases import pipeline

from spptransfer.pretraining import precision
from spptransfer.pretraining.distributed import Team
from spptransfer.pretraining.precision import choose_precision
from spptransfer.pretraining.student import build_student

CPU = torch.device("cpu")


@pytest.fixture
def student(photos):
    return build_student(pipeline(photos).network, 3, None, seed=0)


@pytest.fixture
def machine(monkeypatch):
    """A machine whose abilities a test chooses."""

    def choose(*, multiplies, gain=1.0):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: multiplies)
        monkeypatch.setattr(precision, "_gain", lambda student, side: gain)

    return choose


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_what_is_asked_for_is_taken_whatever_the_machine_can_do(wanted, student, machine):
    machine(multiplies=wanted == "float32", gain=0.1)
    assert choose_precision(wanted, student, 32, CPU) == wanted


@pytest.mark.parametrize(
    ("multiplies", "gain", "chosen"),
    [
        (False, 9.0, "float32"),
        (True, 1.05, "float32"),
        (True, 0.4, "float32"),
        (True, 1.6, "bfloat16"),
    ],
)
def test_auto_wants_a_machine_that_gains(multiplies, gain, chosen, student, machine):
    machine(multiplies=multiplies, gain=gain)
    assert choose_precision("auto", student, 32, CPU) == chosen


def test_trying_leaves_network_generator_and_threads_as_they_were(student, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    weights = {key: value.clone() for key, value in student.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert choose_precision("auto", student, 24, CPU) in ("float32", "bfloat16")
    assert all(value.equal(weights[key]) for key, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert torch.get_rng_state().equal(state)
    assert torch.get_num_threads() == threads


def test_the_first_process_chooses_for_all(student, machine, monkeypatch):
    machine(multiplies=True, gain=9.0)
    monkeypatch.setattr(Team, "told", lambda self, value: 0.0)  # the first one gains nothing
    assert choose_precision("auto", student, 32, CPU, Team(rank=1, count=2)) == "float32"
