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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.extraction import reading
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.reading import Source, Views
from spptransfer.images import Rendering
from spptransfer.runtimes import FEW_IMAGES, ComputeOptions, devices, precisions_of
from spptransfer.spec import FeatureSpec, layers_of

logger = logging.getLogger(__name__)

# Relative l2 error of the features up to which bfloat16 is taken.
LARGEST_ERROR = 0.01
# A gain below this may be noise, and float32 is the safer choice.
LEAST_GAIN = 1.2
# How many images are tried.
TRIED = 8
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


def choose_precision(
    backbone: Backbone | BackboneRef,
    specs: Sequence[FeatureSpec],
    sources: Iterable[Source],
    options: ComputeOptions,
    *,
    count: int,
) -> PrecisionChoice:
    """Choose between float32 and bfloat16 by the first images that can be read."""
    if count < FEW_IMAGES:
        return PrecisionChoice("float32", f"fewer than {FEW_IMAGES} images: bfloat16 is not tried")
    if "bfloat16" not in precisions_of(options.runtime):
        return PrecisionChoice("float32", f"{options.runtime} has no arithmetic for bfloat16")
    device = devices.choose_device(options.device, options.runtime)
    if not devices.has_bfloat16(device):
        return PrecisionChoice("float32", f"this {device.type} has no arithmetic for bfloat16")
    views = list(itertools.islice(_readable(sources, reading.renderings_of(specs)), TRIED))
    if not views:
        return PrecisionChoice("float32", "none of the first images can be read")
    loaded = backbone.load(layers_of(specs)) if isinstance(backbone, BackboneRef) else backbone
    try:
        with devices.one_thread():  # its time does not depend on who else is at work
            choice = _try(loaded, specs, views, dataclasses.replace(options, threads=1))
    except NotImplementedError as error:
        choice = PrecisionChoice("float32", f"torch lacks an operator in bfloat16: {error}")
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        choice = PrecisionChoice("float32", "the trial of bfloat16 ran out of memory")
    logger.info("%s: %s", choice.precision, choice.reason)
    return choice


def relative_error(found: Sequence[npt.ArrayLike], exact: Sequence[npt.ArrayLike]) -> float:
    """Relative l2 error of vectors, all of them taken as one."""
    one, other = (np.concatenate(each).astype(np.float64) for each in (found, exact))
    difference, length = float(np.linalg.norm(one - other)), float(np.linalg.norm(other))
    return difference / length if length else (0.0 if not difference else math.inf)


def _try(
    backbone: Backbone,
    specs: Sequence[FeatureSpec],
    views: Sequence[Views],
    options: ComputeOptions,
) -> PrecisionChoice:
    """Measure gain and error; the views are those of the images tried."""
    exact, low = (
        FeatureComputer(
            [dataclasses.replace(spec, precision=precision) for spec in specs], backbone, options
        )
        for precision in ("float32", "bfloat16")
    )
    with exact.runtime, low.runtime:
        seconds: dict[FeatureComputer, list[float]] = {exact: [], low: []}
        for each in (exact, low) * (1 + _TIMINGS):  # the first round only warms up
            seconds[each].append(_seconds(each, views[0]))
        gain = min(seconds[exact][1:]) / max(min(seconds[low][1:]), 1e-9)
        if gain < LEAST_GAIN:
            reason = f"bfloat16 is only {gain:.2f} times as fast here"
            return PrecisionChoice("float32", reason, gain=gain)
        expected, found = _vectors(exact, views), _vectors(low, views)
    # Not the built-in `max`, which may pass over NaN.
    error = float(np.max([relative_error(found[key], expected[key]) for key in expected]))
    if not math.isfinite(error):
        return PrecisionChoice("float32", "bfloat16 gives numbers that are not finite", gain=gain)
    figures = f"on the first {len(views)} images its features are off by {100 * error:.2f} %"
    if not error <= LARGEST_ERROR:
        reason = f"{figures} in bfloat16, more than {100 * LARGEST_ERROR:g} %"
        return PrecisionChoice("float32", reason, error, gain)
    return PrecisionChoice("bfloat16", f"{gain:.1f} times as fast; {figures}", error, gain)


def _vectors(
    computer: FeatureComputer, views: Sequence[Views]
) -> Mapping[Any, list[npt.NDArray[Any]]]:
    """Compute the vectors of all images by spec, scale, layer and level."""
    found: dict[Any, list[npt.NDArray[Any]]] = defaultdict(list)
    for of_image in views:
        for rendering, pixels in of_image.items():
            wanted = reading.specs_with(rendering, computer.specs)
            for number, vectors in zip(wanted, computer.compute(pixels[None], wanted), strict=True):
                for block, values in vectors.items():
                    found[number, rendering, block].append(values[0])
    return found


def _seconds(computer: FeatureComputer, views: Views) -> float:
    """Measure the time for one image: of our threads' processors, or on a device's clock.

    On a device it is computed with as many of its like as in an extraction: alone it would
    take the time of the launches, whatever the arithmetic.
    """
    runtime = computer.runtime
    on_cpu = runtime.device == "cpu"
    # A runtime may compute in a thread of its own.
    of_all = time.thread_time if runtime.name == "torch" else time.process_time
    clock, spent = of_all if on_cpu else time.perf_counter, 0.0
    for rendering, pixels in views.items():
        height, width, _ = pixels.shape
        count = 1 if on_cpu else max(1, runtime.batch_pixels // (height * width))
        batch, wanted = (
            np.repeat(pixels[None], count, axis=0),
            reading.specs_with(rendering, computer.specs),
        )
        start = clock()
        computer.compute(batch, wanted)
        spent += (clock() - start) / count
    return spent


def _readable(sources: Iterable[Source], renderings: Sequence[Rendering]) -> Iterator[Views]:
    """Yield the views of images that can be read and are of common sizes, of the first ones."""
    for source in itertools.islice(sources, 8 * TRIED):
        info = reading.read_header(source)
        sizes = reading.view_sizes(info, renderings)
        if isinstance(sizes, str) or max([h * w for h, w in sizes]) > LARGEST_VIEW:
            continue
        views = reading.decode_views(source, info, renderings)
        if not isinstance(views, str):  # else it becomes a failed row when its turn comes
            yield views
