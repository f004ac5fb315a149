"""Maps computed by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime

from spptransfer.runtimes.graph import PIXELS, Graph, Run

_ERRORS_ONLY = 3


def compile(graph: Graph, precision: str, threads: int) -> Run:
    """Open a session that all threads share; each batch is computed in the thread that asks."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # The session uses the constants where torch has them; they must not go before it does.
    lent = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in graph.constants.values()]
    options.add_external_initializers(list(graph.constants), lent)
    session = onnxruntime.InferenceSession(
        graph.model(embedded=False), options, providers=["CPUExecutionProvider"]
    )

    def run(pixels: npt.NDArray[np.uint8], _: object = lent) -> list[npt.NDArray[np.float32]]:
        found: list[npt.NDArray[np.float32]] = session.run(graph.outputs, {PIXELS: pixels})
        return found

    return run
