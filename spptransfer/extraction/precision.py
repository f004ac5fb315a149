"""Whether bfloat16 pays on this machine and the features stand it, found by trying both.

The choice becomes part of the feature spec; what was measured does not, so that two machines
that choose alike have the same fingerprint.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.reading import (
    ImageInfo,
    Rendering,
    Source,
    Views,
    decode_views,
    read_header,
    view_sizes,
)
from spptransfer.extraction.specs import layers_of
from spptransfer.runtimes import ComputeOptions, precisions_of
from spptransfer.runtimes.devices import (
    choose_device,
    has_bfloat16,
    is_out_of_memory,
    one_thread,
)
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

# Relative l2 error of the features up to which bfloat16 is taken.
LARGEST_ERROR = 0.01
# A gain below this may be noise, and float32 is the safer choice.
LEAST_GAIN = 1.2
# How many images are tried, and how many there have to be for the trial to be worth its time.
TRIED = 8
WORTHWHILE = 64
# Pixels of the largest view that is tried.
LARGEST_VIEW = 1 << 21
_TIMINGS = 3


@dataclass(frozen=True)
class PrecisionChoice:
    """What was chosen, and why."""

    precision: Literal["float32", "bfloat16"]
    reason: str
    error: float | None = None
    gain: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the record."""
        return dataclasses.asdict(self)


def choose_precision(
    backbone: Backbone | BackboneRef,
    specs: Sequence[FeatureSpec],
    sources: Iterable[Source],
    options: ComputeOptions,
    *,
    count: int,
) -> PrecisionChoice:
    """Choose between float32 and bfloat16 by the first images that can be read.

    Examples
    --------
    >>> from spptransfer.backbones import BackboneRef
    >>> choose_precision(BackboneRef("alexnet", "random"), [], [], ComputeOptions(), count=3).reason
    'fewer than 64 images: bfloat16 is not tried'
    """
    if count < WORTHWHILE:
        return PrecisionChoice("float32", f"fewer than {WORTHWHILE} images: bfloat16 is not tried")
    if "bfloat16" not in precisions_of(options.runtime):
        return PrecisionChoice("float32", f"{options.runtime} has no arithmetic for bfloat16")
    device = choose_device(options.device, options.runtime)
    if not has_bfloat16(device):
        return PrecisionChoice("float32", f"this {device.type} has no arithmetic for bfloat16")
    renderings = _renderings(specs)
    views = list(itertools.islice(_readable(sources, renderings), TRIED))
    if not views:
        return PrecisionChoice("float32", "none of the first images can be read")
    loaded = backbone.load(layers_of(specs)) if isinstance(backbone, BackboneRef) else backbone
    try:
        with one_thread():  # its time does not depend on who else is at work
            choice = _try(loaded, specs, views, dataclasses.replace(options, threads=1))
    except NotImplementedError as error:
        choice = PrecisionChoice("float32", f"torch lacks an operator in bfloat16: {error}")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        choice = PrecisionChoice("float32", "the trial of bfloat16 ran out of memory")
    logger.info("%s: %s", choice.precision, choice.reason)
    return choice


def relative_error(found: Sequence[npt.ArrayLike], exact: Sequence[npt.ArrayLike]) -> float:
    """Relative l2 error of vectors, all of them taken as one.

    Examples
    --------
    >>> relative_error([[3.0, 4.5]], [[3.0, 4.0]])
    0.1
    """
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(found, exact, strict=True)
    ]
    difference = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs))
    length = math.sqrt(sum(float((b**2).sum()) for _, b in pairs))
    return difference / length if length else (0.0 if not difference else math.inf)


def _try(
    backbone: Backbone,
    specs: Sequence[FeatureSpec],
    views: Sequence[Views],
    options: ComputeOptions,
) -> PrecisionChoice:
    """Measure gain and error; the views are those of the images tried."""
    with (
        _Trial(backbone, specs, "float32", options) as exact,
        _Trial(backbone, specs, "bfloat16", options) as low,
    ):
        gain = _gain(exact, low, views[0])
        if gain < LEAST_GAIN:
            reason = f"bfloat16 is only {gain:.2f} times as fast here"
            return PrecisionChoice("float32", reason, gain=gain)
        blocks = zip(low.blocks(views).values(), exact.blocks(views).values(), strict=True)
        # Not the built-in `max`, which may pass over NaN.
        error = float(np.max([relative_error(found, expected) for found, expected in blocks]))
    if not math.isfinite(error):
        return PrecisionChoice("float32", "bfloat16 gives numbers that are not finite", gain=gain)
    figures = f"on the first {len(views)} images its features are off by {100 * error:.2f} %"
    if not error <= LARGEST_ERROR:
        reason = f"{figures} in bfloat16, more than {100 * LARGEST_ERROR:g} %"
        return PrecisionChoice("float32", reason, error, gain)
    return PrecisionChoice("bfloat16", f"{gain:.1f} times as fast; {figures}", error, gain)


class _Trial:
    """The features of some specs in one precision."""

    def __init__(
        self,
        backbone: Backbone,
        specs: Sequence[FeatureSpec],
        precision: Literal["float32", "bfloat16"],
        options: ComputeOptions,
    ) -> None:
        self._specs = [dataclasses.replace(spec, precision=precision) for spec in specs]
        self._computer = FeatureComputer(self._specs, backbone, options)

    def __enter__(self) -> _Trial:
        self._computer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._computer.__exit__(*error)

    def blocks(self, views: Sequence[Views]) -> dict[Any, list[npt.NDArray[np.float32]]]:
        """Compute the vectors of all images by spec, scale and level."""
        found: dict[Any, list[npt.NDArray[np.float32]]] = {}
        for of_image in views:
            for rendering, pixels in of_image.items():
                wanted = self._wanted(rendering)
                computed = self._computer.compute(pixels[None], wanted)
                for number, vectors in zip(wanted, computed, strict=True):
                    for level, values in vectors.items():
                        found.setdefault((number, rendering, level), []).append(values)
        return found

    def seconds(self, views: Views) -> float:
        """Measure the time for one image: of our threads' processors, or on a device's clock.

        On a device it is computed with as many of its like as in an extraction: alone it would
        take the time of the launches, whatever the arithmetic.
        """
        runtime = self._computer.runtime
        on_cpu = runtime.device == "cpu"
        # A runtime may compute in a thread of its own.
        of_all = time.thread_time if runtime.name == "torch" else time.process_time
        clock, spent = of_all if on_cpu else time.perf_counter, 0.0
        for rendering, pixels in views.items():
            height, width, _ = pixels.shape
            count = 1 if on_cpu else max(1, runtime.batch_pixels // (height * width))
            batch, wanted = np.repeat(pixels[None], count, axis=0), self._wanted(rendering)
            start = clock()
            self._computer.compute(batch, wanted)
            spent += (clock() - start) / count
        return spent

    def _wanted(self, rendering: Rendering) -> list[int]:
        """Return the numbers of the specs that want a rendering."""
        return [i for i, spec in enumerate(self._specs) if rendering in _renderings([spec])]


def _gain(exact: _Trial, low: _Trial, views: Views) -> float:
    """Measure how many times as fast the second one is, each at its best."""
    seconds: dict[_Trial, list[float]] = {exact: [], low: []}
    for trial in (*seconds, *list(seconds) * _TIMINGS):  # the first round only warms up
        seconds[trial].append(trial.seconds(views))
    return min(seconds[exact][1:]) / max(min(seconds[low][1:]), 1e-9)


def _renderings(specs: Iterable[FeatureSpec]) -> list[Rendering]:
    pairs = [Rendering(scale, spec.view) for spec in specs for scale in spec.scales]
    return list(dict.fromkeys(pairs))


def _readable(sources: Iterable[Source], renderings: Sequence[Rendering]) -> Iterator[Views]:
    """Yield the views of images that can be read, of a few times as many as are tried."""
    for source in itertools.islice(sources, 8 * TRIED):
        info = read_header(source)
        if _is_small(info, renderings):
            views = decode_views(source, info, renderings)
            if not isinstance(views, str):  # else it becomes a failed row when its turn comes
                yield views


def _is_small(info: ImageInfo, renderings: Sequence[Rendering]) -> bool:
    """Tell whether all views are of common sizes: a trial with others would take long."""
    sizes = view_sizes(info, renderings)
    return not isinstance(sizes, str) and all(h * w <= LARGEST_VIEW for h, w in sizes)
