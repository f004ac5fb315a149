"""What a module does to maps, as a graph, with nothing changed that other threads use.

`torch.fx.symbolic_trace` replaces methods of every module in the process as long as it runs. What
another thread computes at that moment fails, and two traces at once can leave the methods replaced
for good. Here a module's own `forward` runs on a likeness of it that writes down its calls.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer


def trace(module: nn.Module) -> fx.GraphModule:
    """Follow a module's `forward` down to the modules that are torch's own.

    Parameters
    ----------
    module : Module
        With one argument. It is not changed, and shares its submodules with the outcome.

    Returns
    -------
    GraphModule
        Of calls of modules by their names, of functions and of methods.

    Raises
    ------
    TraceError
        If what is done depends on numbers.
    NotImplementedError
        If tensors of the module's own take part.

    Examples
    --------
    >>> from torch import nn
    >>> traced = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    >>> [(node.op, node.target) for node in traced.graph.nodes][1:3]
    [('call_module', '0'), ('call_module', '1')]
    """
    graph = fx.Graph()
    tracer = _Tracer(graph)
    likeness = _likeness(module, "", {}, tracer)
    found = likeness(fx.Proxy(graph.placeholder("maps"), tracer))
    graph.output(tracer.create_arg(found))
    return fx.GraphModule(module, graph)


class _Tracer(GraphAppendingTracer):
    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            raise NotImplementedError("a module's own tensors cannot be followed")
        return super().create_arg(a)


class _Call(nn.Module):
    """In place of one of torch's modules: its calls are written down."""

    def __init__(self, name: str, tracer: _Tracer) -> None:
        super().__init__()
        self._name_of_it = name
        self._tracer = tracer

    def forward(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        return self._tracer.create_proxy("call_module", self._name_of_it, args, kwargs)


def _likeness(
    module: nn.Module, name: str, known: dict[nn.Module, nn.Module], tracer: _Tracer
) -> nn.Module:
    """The same module of likenesses; one that has two names is known by the first."""
    if module not in known and name and _is_torchs(module):
        known[module] = _Call(name, tracer)
    elif module not in known:
        known[module] = likeness = copy.copy(module)
        likeness._modules = {
            key: child and _likeness(child, f"{name}.{key}".lstrip("."), known, tracer)
            for key, child in module._modules.items()
        }
    return known[module]


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
