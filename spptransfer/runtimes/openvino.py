"""Maps computed by OpenVINO.

Its converter for torch's modules is not used: it reports its use over the network.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import numpy.typing as npt
import openvino

from spptransfer.runtimes.graph import Graph, Run
from spptransfer.system import count_processors

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def compile(graph: Graph, precision: str, threads: int) -> Run:
    """Compile a graph with a stream for every thread that asks."""
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        # Fewer would be pinned to the same processors as those of our other processes.
        "ENABLE_CPU_PINNING": threads == count_processors() > 1,
    }
    model = _core().read_model(graph.model(embedded=True))
    compiled = _core().compile_model(model, "CPU", settings)
    mine = threading.local()  # a request computes one batch at a time

    def run(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        given = openvino.Tensor(pixels, shared_memory=True)
        mine.request.infer([given], share_inputs=True, share_outputs=True)
        # Copied, since the next batch is written over it.
        return [output.data.copy() for output in mine.request.output_tensors]

    return run


@functools.cache
def _core() -> openvino.Core:
    """The process's only one.

    Each sets a stack for signals and, when it goes, puts back the one that it found: with two
    that do not go in turn, the next signal would be handled on memory that is no longer there.
    """
    return openvino.Core()
