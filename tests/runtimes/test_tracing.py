from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import fx, nn

from spptransfer import backbones
from spptransfer.runtimes.graph import trace

FAMILIES = ("alexnet", "resnet18", "resnet50", "squeezenet1_1", "mobilenet_v2", "zf5", "overfeat-5")


def steps(traced: fx.GraphModule) -> list[tuple]:
    return [(node.op, node.target, list(map(str, node.args))) for node in traced.graph.nodes][1:]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_is_that_of_torch(name):
    with torch.device("meta"):
        trunk = backbones.network(name).trunk("spp")
    expected, found = fx.symbolic_trace(trunk), trace(trunk)
    first = {"input": "maps", "input_1": "maps"}
    renamed = [
        (op, to, [first.get(argument, argument) for argument in arguments])
        for op, to, arguments in steps(expected)
    ]
    assert steps(found) == renamed
    assert len(steps(found)) > 8


class Meanwhile(nn.Module):
    """Another thread runs another network before this one goes on."""

    def __init__(self):
        super().__init__()
        self.own = nn.ReLU()
        self.others = []

    def forward(self, maps):
        with ThreadPoolExecutor(1) as pool:
            other = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
            self.others.append(pool.submit(other, torch.ones(1, 1, 4, 4)).result())
        return self.own(maps)


def test_what_another_thread_computes_meanwhile_is_not_touched():
    module = Meanwhile()
    traced = trace(module)
    assert module.others[0].tolist() == torch.ones(1, 1, 2, 2).tolist()
    assert [target for _, target, _ in steps(traced)] == ["own", "output"]


def test_two_traces_at_once_leave_nothing_behind():
    before = nn.Module.__call__, nn.Module.__getattr__

    class Nested(Meanwhile):
        def forward(self, maps):
            with ThreadPoolExecutor(1) as pool:
                self.others.append(pool.submit(trace, Meanwhile()).result())
            return self.own(maps)

    module = Nested()
    trace(module)
    assert len(steps(module.others[0])) == 2
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


def test_a_module_is_not_changed_and_shares_its_parts():
    twice = nn.ReLU()
    module = nn.Sequential(nn.Conv2d(3, 4, 1), twice, nn.Sequential(twice, nn.Identity()))
    before = list(module.named_modules())
    traced = trace(module)
    assert list(module.named_modules()) == before
    assert [target for _, target, _ in steps(traced)] == ["0", "1", "1", "2.1", "output"]
    assert traced.get_submodule("0").weight is module[0].weight


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.ones(1))

    def forward(self, maps):
        return maps * self.by


class Dependent(nn.Module):
    def forward(self, maps):
        return maps if maps.sum() > 0 else -maps


@pytest.mark.parametrize(
    ("module", "error"), [(Scaled(), NotImplementedError), (Dependent(), fx.proxy.TraceError)]
)
def test_what_no_graph_can_say_is_an_error(module, error):
    with pytest.raises(error):
        trace(module)
