"""Networks of fused convolutions.

On a CPU, eager torch brings a convolution's weights into oneDNN's order on every call, computes
1 x 1 convolutions of a small batch as plain matrix products, and goes over every map once more
for the activation and for the sum with a shortcut. `fuse` makes the same network without all
that. It needs no compiler, and every shape is welcome.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import fx, nn

from spptransfer.backbones.fused import DTYPES, FusedConvolution
from spptransfer.backbones.pooled import NonNegativeMaxPool
from spptransfer.backbones.tracing import trace
from spptransfer.processor import one_thread

logger = logging.getLogger(__name__)

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_TOLERANCES = dict(zip(DTYPES, (1e-4, 5e-2), strict=True))
_PROBE_SIDE = 64


def fuse(trunk: nn.Sequential) -> nn.Sequential:
    """Make the same trunk of fused convolutions, if they work here.

    Parameters
    ----------
    trunk : Sequential
        From a batch of images, N x 3 x H x W, to a map; frozen, batch norms folded.

    Returns
    -------
    Sequential
        A module for each of the trunk's, of the same name and the same output, sharing its
        parameters. No module changes its input. The trunk itself, if it is not in float32 or
        bfloat16 on a CPU, or if the fused one does not agree with it on a probe, be it that an
        operator is missing or that the trunk's numbers are not finite.

    Examples
    --------
    >>> import torch
    >>> trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> fuse(trunk.requires_grad_(False))
    Sequential(
      (0): FusedConvolution((8, 3, 3, 3), stride=[1, 1], activation='relu')
      (1): Identity()
    )
    """
    weight = next(trunk.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype not in _TOLERANCES:
        return trunk
    fused = _fuse_sequence(trunk)
    try:
        with one_thread():
            agrees = _agree(trunk, fused, weight.dtype)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        logger.info("fused convolutions do not work here: %s", str(error).splitlines()[:1])
        return trunk
    for module in fused.modules():
        if isinstance(module, FusedConvolution):
            module.forget()  # larger images may want other orders of weights
    return fused if agrees else trunk


@torch.inference_mode()
def _agree(trunk: nn.Sequential, fused: nn.Sequential, dtype: torch.dtype) -> bool:
    """Whether both compute the same finite numbers from a noisy image."""
    noise = torch.rand(1, _PROBE_SIDE, _PROBE_SIDE, 3, generator=torch.Generator().manual_seed(0))
    image = noise.mul_(4).sub_(2).to(dtype).permute(0, 3, 1, 2)
    expected, found = trunk(image.clone()).float(), fused(image).float()
    # In this order: fused activations hide what is not a number.
    if not expected.isfinite().all():
        return False
    error = torch.linalg.vector_norm(found - expected)
    return bool(error <= _TOLERANCES[dtype] * torch.linalg.vector_norm(expected))


def _fuse_sequence(sequence: nn.Sequential, *, inside: bool = False) -> nn.Sequential:
    """Fuse module by module; an activation becomes an identity, so that counts stay the same.

    What a module of the trunk itself puts out may be a layer that is asked for; what lies
    inside another module is seen by nobody, so its follower may write over it.
    """
    fused = nn.Sequential()
    before: nn.Module | None = None
    activated = False
    for name, module in sequence._modules.items():  # with those that occur twice
        if isinstance(before, FusedConvolution) and type(module) in _ACTIVATIONS:
            before.activation = _ACTIVATIONS[type(module)]
            before, module = None, nn.Identity()
            activated = True
        elif activated and NonNegativeMaxPool.suits(module):
            before, module, activated = None, NonNegativeMaxPool(module), False
        elif not isinstance(module, nn.Identity):
            module = before = _fuse_module(module, inside and isinstance(before, fx.GraphModule))
            activated = False
        fused.add_module(name, module)
    return fused.train(sequence.training)


def _fuse_module(module: nn.Module, owns_input: bool = False) -> nn.Module:
    if type(module) is nn.Sequential:
        return _fuse_sequence(module, inside=True)
    if _is_plain_convolution(module):
        return FusedConvolution(module)
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return module
    return _fuse_block(module, owns_input)


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    known = type(module) is nn.Conv2d
    return known and module.padding_mode == "zeros" and module.padding != "same"


def _fuse_block(block: nn.Module, owns_input: bool) -> nn.Module:
    """Fuse what a block's own `forward` does, or leave it alone where that cannot be followed."""
    try:
        traced = trace(block)
    except Exception as error:  # Tracing runs the block's code with stand-ins for tensors.
        logger.info("'%s' is not fused: %s", type(block).__name__, error)
        return block
    graph, modules = traced.graph, dict(traced.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Identity):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    if any(_changes_what_others_use(node, modules) for node in graph.nodes):
        return block
    for number, node in enumerate(list(_convolutions(graph, modules))):
        _fuse_node(traced, node, modules, f"fused{number}", owns_input)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.train(block.training)


def _convolutions(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if node.op == "call_module" and _is_plain_convolution(modules[str(node.target)]):
            yield node


def _fuse_node(
    traced: fx.GraphModule,
    node: fx.Node,
    modules: dict[str, nn.Module],
    name: str,
    owns_input: bool,
) -> None:
    """Put one module in the place of a convolution, the addition and the activation after it."""
    chain, shortcut, activation = [node], None, "none"
    follower = _only_user(node)
    if follower is not None and (shortcut := _other_summand(follower, node)) is not None:
        chain.append(follower)
        follower = _only_user(follower)
    if follower is not None and (found := _activation(follower, modules)):
        chain.append(follower)
        activation = found
    convolution = modules[str(node.target)]
    assert isinstance(convolution, nn.Conv2d)
    overwrites = shortcut is not None and _is_spent(shortcut, chain, modules, owns_input)
    adds = shortcut is not None
    modules[name] = FusedConvolution(convolution, activation, adds=adds, overwrites=overwrites)
    traced.add_module(name, modules[name])
    with traced.graph.inserting_before(chain[-1]):
        inputs = (node.args[0],) if shortcut is None else (node.args[0], shortcut)
        fused = traced.graph.call_module(name, inputs)
    chain[-1].replace_all_uses_with(fused)
    for replaced in reversed(chain):
        traced.graph.erase_node(replaced)


def _is_spent(
    shortcut: fx.Node, chain: list[fx.Node], modules: dict[str, nn.Module], owns_input: bool
) -> bool:
    """Whether a shortcut is a tensor of its own that nothing reads from the end of a chain on."""
    if shortcut.op == "placeholder":
        is_own = owns_input
    else:
        made_by = modules.get(str(shortcut.target)) if shortcut.op == "call_module" else None
        is_own = isinstance(made_by, (nn.Conv2d, FusedConvolution))
    order = {node: number for number, node in enumerate(shortcut.graph.nodes)}
    read_later = any(order[user] > order[chain[-1]] for user in shortcut.users)
    return is_own and not read_later and shortcut is not chain[0].args[0]


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_summand(node: fx.Node, summand: fx.Node) -> fx.Node | None:
    """What a node adds to a summand, if it is a plain addition of two different tensors."""
    adds = node.op == "call_function" and node.target in _ADDITIONS
    adds = adds or (node.op == "call_method" and node.target in ("add", "add_"))
    if not adds or node.kwargs or len(node.args) != 2:
        return None
    other = node.args[1] if node.args[0] is summand else node.args[0]
    return other if isinstance(other, fx.Node) and other is not summand else None


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if node.op == "call_module":
        return _ACTIVATIONS.get(type(modules[str(node.target)]))
    return "relu" if node.op == "call_method" and node.target in ("relu", "relu_") else None


def _changes_what_others_use(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node works in place on a value that another node reads: order would matter."""
    in_place = node.op == "call_method" and str(node.target).endswith("_")
    if node.op == "call_module":
        in_place = bool(getattr(modules[str(node.target)], "inplace", False))
    in_place = in_place or node.target is operator.iadd
    if not in_place:
        return False
    changed = node.args[0]
    return (
        not isinstance(changed, fx.Node) or len(changed.users) != 1 or changed.op == "placeholder"
    )
