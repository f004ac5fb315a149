"""Every backbone by name: the networks of this package, models of timm, and registered ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from spptransfer.backbones.catalogue import NETWORKS, describe_network
from spptransfer.backbones.info import TIMM, Backbone, BackboneInfo
from spptransfer.errors import ConfigError, suggestion
from spptransfer.files import expand_path

Builder = Callable[[str | os.PathLike[str]], Backbone]
_builders: dict[str, Builder] = {}
_PARTS = ("info", "weights_sha256", "layers", "maps_of", "vectors_of")


def register(name: str, build: Builder) -> None:
    """Register a backbone, so that its name works wherever one of this package does.

    That is in pipeline files, in `SPPFeatures` and in ``spptransfer backbones``. Commands know
    what was registered by the time they run, for example by a module of one's own that calls
    ``spptransfer.cli.main()``.

    Parameters
    ----------
    name : str
        A name that no backbone of this package has. A name registered before means the new one.
    build : callable
        ``build(weights)`` returns a `Backbone` for whatever the user gives for ``weights``, a
        word or a path; it is called again where the backbone is needed again. ``"random"`` is
        what it gets where only the layers are asked for.

    Raises
    ------
    ConfigError
        If the name is taken by this package, or is no name.

    Examples
    --------
    >>> import torch
    >>> from spptransfer import backbones
    >>> def build(weights):
    ...     torch.manual_seed(0)
    ...     module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU())
    ...     if weights != "random":
    ...         module.load_state_dict(torch.load(weights, weights_only=True))
    ...     return backbones.from_module(module, "1", mean=[0.5] * 3, std=[0.5] * 3)
    >>> backbones.register("my-net", build)
    >>> backbones.describe("my-net").layers
    (LayerInfo(name='1', kind='map', channels=8, stride=4),)
    >>> backbones.load("my-net", "random", layer="1").layers
    ('1',)
    """
    if not isinstance(name, str) or not name or name in NETWORKS or is_timm(name):
        raise ConfigError(f"backbone: {name!r} cannot be registered; take a name of your own")
    if not callable(build):
        raise ConfigError(f"backbone: what builds '{name}' must be a function of the weights")
    _builders[name] = build
    _known.cache_clear()


def is_timm(name: str) -> bool:
    """Tell whether a backbone is one of timm's models."""
    return str(name).startswith(TIMM)


def builder(name: str) -> Builder | None:
    """Return what builds a registered backbone; None for one of this package, or unknown."""
    return _builders.get(name)


def build(name: str, weights: str | os.PathLike[str]) -> Backbone:
    """Build a registered backbone."""
    backbone = _builders[name](weights)
    missing = [part for part in _PARTS if not hasattr(backbone, part)]
    if missing:
        raise ConfigError(f"backbone '{name}': what was built has no {', '.join(missing)}")
    if backbone.info.name != name:  # the one under which it is asked for
        backbone.info = replace(backbone.info, name=name)
    return backbone


def built(name: str, weights: str | os.PathLike[str]) -> tuple[BackboneInfo, str]:
    """Return the description and the identity of a registered backbone, built if need be."""
    path = expand_path(weights)
    status = path.stat() if os.path.exists(path) else None
    state = (path.absolute(), status.st_size, status.st_mtime_ns) if status else None
    return _known(name, os.fspath(weights), state)


@cache
def _known(name: str, weights: str, state: object) -> tuple[BackboneInfo, str]:
    """Remember what a registered backbone is, until it or its weights' file changes."""
    backbone = build(name, weights)
    return backbone.info, backbone.weights_sha256


def names() -> tuple[str, ...]:
    """Names of all backbones, registered ones last.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from spptransfer import backbones
    >>> [name for name in backbones.names() if name.startswith("squeezenet")]
    ['squeezenet1_0', 'squeezenet1_1']
    """
    return (*NETWORKS, *_builders)


def describe(name: str, weights: str | os.PathLike[str] | None = None) -> BackboneInfo:
    """Look a backbone up by its name.

    Parameters
    ----------
    name : str
        One of `names`, or ``timm/NAME`` or ``timm/NAME.TAG`` for any model of timm, which is
        imported for that.
    weights : str or path, optional
        Of a registered backbone, which is built to be described: which weights.

    Returns
    -------
    BackboneInfo

    Raises
    ------
    ConfigError
        If there is no such backbone.

    Examples
    --------
    >>> from spptransfer import backbones
    >>> backbones.describe("resnet50").layer("spp")
    LayerInfo(name='spp', kind='map', channels=2048, stride=32)
    >>> backbones.describe("alexnt")
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: unknown backbone 'alexnt': did you mean 'alexnet'? allowed: ...
    """
    if builder(str(name)):
        return built(name, "random" if weights is None else weights)[0]
    if is_timm(name):
        from spptransfer.backbones.timm_models import describe as describe_model

        return describe_model(name)
    if name not in NETWORKS:
        raise ConfigError(f"unknown backbone '{name}': {suggestion(str(name), names())}")
    return describe_network(str(name))
