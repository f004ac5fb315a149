"""What ``precision: auto`` stands for: decided once, before a cache is opened, and remembered.

The choice is part of the feature spec, hence of the cache's name. The figures behind it depend on
the machine; they lie in a small file beside the cache, and in the results of every run on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spptransfer.files import atomic_write, make_folder
from spptransfer.cache.inventory import precision_note
from spptransfer.cache.unfinished import is_begun
from spptransfer.experiment.prepare import Experiment
from spptransfer.extraction.joint import shared_part
from spptransfer.runtimes import precisions_of
from spptransfer.spec import Precision

# In which precisions a cache that is there already is taken instead of deciding anew.
_CANDIDATES: tuple[Precision, ...] = ("float32", "bfloat16")

Tell = Callable[[str], Any]


def settle(experiment: Experiment) -> Experiment:
    """Take the precision of a cache that is there already, finished or begun.

    Parameters
    ----------
    experiment : Experiment
        Whose precision is undecided.

    Returns
    -------
    Experiment
        Decided if there is such a cache. A finished one goes before a begun one, and that before
        a mere choice; among equals, float32 goes first.
    """
    candidates = alternatives(experiment)
    for is_there in (Path.exists, is_begun, _is_chosen):
        for candidate in candidates:
            if is_there(candidate.cache[0]):
                return candidate
    return experiment


def alternatives(experiment: Experiment) -> list[Experiment]:
    """All that an experiment can become whose precision is left to us."""
    offered = precisions_of(experiment.machine.runtime)
    return [_in(experiment, precision) for precision in _CANDIDATES if precision in offered]


def decide(experiments: Sequence[Experiment], tell: Tell = lambda line: None) -> list[Experiment]:
    """Choose the precision of experiments that leave it to us, and put down why.

    Parameters
    ----------
    experiments : sequence of Experiment
        Those of one network and one dataset get one precision, so that one pass can serve
        them; it is that of the first one that has a cache already, if there is one.
    tell : callable
        Is told what was chosen, line by line.

    Returns
    -------
    list of Experiment
        In their order, all decided.
    """
    settled = [settle(each) if each.undecided else each for each in experiments]
    keys = [_key(each) for each in settled]
    groups: dict[str, list[Experiment]] = {}
    for key, each in zip(keys, settled, strict=True):
        groups.setdefault(key, []).append(each)
    chosen = {key: _choose(group, tell) for key, group in groups.items()}
    return [
        _in(each, chosen[key]) if each.undecided else each
        for key, each in zip(keys, settled, strict=True)
    ]


def _in(experiment: Experiment, precision: Precision) -> Experiment:
    wanted = replace(experiment.wanted, precision=precision)
    return replace(experiment, wanted=wanted, undecided=False)


def _is_chosen(path: Path) -> bool:
    return precision_note(path).exists()


def _key(experiment: Experiment) -> str:
    """Equal for experiments that one pass over the images can serve, if precision allows."""
    section = experiment.pipeline
    shared = shared_part(replace(experiment.wanted, precision="float32")).to_dict()
    return json.dumps([section.dataset.model_dump_json(), section.features.weights, shared])


def _choose(group: Sequence[Experiment], tell: Tell) -> Precision:
    """Precision for those of a group that are undecided."""
    undecided = [experiment for experiment in group if experiment.undecided]
    for experiment in group:
        if experiment.pipeline.features.precision == "auto" and not experiment.undecided:
            return experiment.wanted.precision
    if not undecided:
        return group[0].wanted.precision
    from spptransfer.extraction.precision import choose_precision

    first = undecided[0]
    if first.machine.engine == "dask":
        tell("precision: float32 (a cluster's workers are not tried; features.precision sets it)")
        return "float32"
    first.dataset.check_images()  # before a network is loaded to be tried on some
    choice = choose_precision(
        first.loader(tuple(dict.fromkeys(each.wanted.layer for each in undecided))),
        [each.wanted for each in undecided],
        first.dataset.iter_paths(range(len(first.dataset))),
        count=len(first.dataset),
        device=first.machine.device,
        runtime=first.machine.runtime,
    )
    tell(f"precision: {choice.precision} ({choice.reason})")
    if choice.gain is not None:  # otherwise nothing was tried
        make_folder(first.machine.cache_dir)
        for experiment in undecided:
            note = precision_note(_in(experiment, choice.precision).cache[0])
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps(choice.to_dict(), indent=1))
    return choice.precision
