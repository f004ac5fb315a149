"""The command that writes a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spptransfer.cli.options import (
    Model,
    Output,
    Threads,
    Weights,
    WeightsDir,
    latest,
    short_path,
)
from spptransfer.text import plural


def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to write.")],
    output: Output,
    weights: Weights = None,
    weights_dir: WeightsDir = None,
    threads: Threads = None,
) -> int:
    """Write a model, its backbone included, as one file for ONNX Runtime.

    It is compared with the model on images of five shapes first.
    """
    from spptransfer.experiment.results import MODEL
    from spptransfer.files import human_bytes
    from spptransfer.models import TransferModel
    from spptransfer.onnx_export import export_onnx

    model = latest(model, MODEL, output)
    loaded = TransferModel.load(model)
    difference = export_onnx(
        loaded, onnx, weights=weights, weights_dir=weights_dir, threads=threads
    )
    size = human_bytes(onnx.stat().st_size)
    output.say(
        f"{short_path(onnx)} ({size}): {plural(len(loaded.classes), 'class', 'classes')}; outputs "
        f"for images of 5 shapes are the model's within {difference:.1g}"
    )
    if loaded.spec.precision != "float32":
        precision = loaded.spec.precision
        output.say(f"  compared in float32; `predict` computes this model in {precision}")
    return output.finish(
        model=str(model.resolve()), file=str(onnx.resolve()), largest_difference=difference
    )
