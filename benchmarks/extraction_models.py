"""What `extraction.py` prepares for its contenders: weights, exported networks, exact counts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GEMM_SIDE = 4096
GEMM_ROUNDS = 4


def gemm_rates() -> dict[str, float]:
    """GFLOP/s of a large matrix product on all processors, the best of some, by precision.

    Torch has two libraries for it, of which either may know a processor better than the other:
    the product as such, and the same product as a convolution of 1 x 1.
    """
    import torch

    from spptransfer.runtimes.devices import has_bfloat16

    side = int(GEMM_SIDE**0.5)
    rates = {}
    # Without hardware for it, one product in bfloat16 takes minutes.
    for precision in ("float32", "bfloat16") if has_bfloat16(torch.device("cpu")) else ("float32",):
        a = torch.randn(GEMM_SIDE, GEMM_SIDE).to(getattr(torch, precision))
        image = a.view(1, side, side, GEMM_SIDE).permute(0, 3, 1, 2)
        weight = a.view(GEMM_SIDE, GEMM_SIDE, 1, 1)
        times = []
        for _ in range(GEMM_ROUNDS):
            for product in (lambda: a @ a, lambda: torch.conv2d(image, weight)):  # noqa: B023
                start = time.perf_counter()
                product()
                times.append(time.perf_counter() - start)
        rates[precision] = 2 * GEMM_SIDE**3 / min(times) / 1e9
    return rates


def export(network: str, weights: str, place: Path, kinds: Iterable[str]) -> None:
    """Write a trunk's weights to `place`.safetensors, and for the peers to .onnx and .xml.

    All contenders get one file of weights with nothing beyond the last map, so that none pays
    for a classifier or for drawing random numbers.
    """
    from safetensors.torch import save_file

    from spptransfer.backbones import describe
    from spptransfer.backbones.loading import random_network, read_tensors
    from spptransfer.backbones.weights import random_seed

    file = place.with_suffix(".safetensors")
    seed = random_seed(weights)
    if network.startswith("timm/"):
        state = timm_model(network).state_dict()
        if seed is None:
            tensors = read_tensors(Path(weights))
            state = {key: tensors[key].float() for key in state if key in tensors}
        save_file(state, file)
        return
    if seed is None:
        tensors = read_tensors(Path(weights))
    else:
        built, _ = random_network(network, seed)
        tensors = built.state_dict(keep_vars=True)
        held = {id(tensor) for tensor in built.trunk("spp").state_dict(keep_vars=True).values()}
        tensors = {key: tensor for key, tensor in tensors.items() if id(tensor) in held}
    save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, file)
    trunk = read_trunk(network, file)
    side = describe(network).min_side + 32
    for kind in kinds:
        {"onnx": _export_onnx, "openvino": _export_openvino}[kind](trunk, side, place)


def timm_model(network: str, side: int | None = None, file: Path | None = None):
    """A model of timm without its classifier, for images of one size if one is given."""
    from safetensors.torch import load_file

    from spptransfer.backbones.timm_models import import_timm

    options: dict[str, Any] = {"img_size": side} if side and "vit_" in network else {}
    if file:
        given = {"state_dict": load_file(file), "num_classes": 0, "classifier": None}
        options |= {"pretrained": True, "pretrained_cfg_overlay": given}
    name = network.removeprefix("timm/")
    return import_timm().create_model(name, num_classes=0, **options).eval().requires_grad_(False)


def read_trunk(network: str, file: Path):
    """The network up to its last map, as torch runs it: nothing folded, nothing fused."""
    import torch

    from spptransfer import backbones
    from spptransfer.backbones.loading import load_into, read_tensors

    info = backbones.describe(network)
    with torch.device("meta"):
        built = backbones.network(network)
    load_into(built, read_tensors(file), info, info.layer("spp"), origin=str(file))
    return built.trunk("spp").eval().requires_grad_(False)


def _export_onnx(trunk, side: int, place: Path) -> None:
    import torch

    sides = {2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older exporter needs one package less, and seconds instead of a minute.
        torch.onnx.export(
            trunk,
            (torch.zeros(1, 3, side, side + 32),),
            place.with_suffix(".onnx"),
            dynamo=False,
            input_names=["images"],
            output_names=["maps"],
            dynamic_axes={"images": sides, "maps": sides},
        )


def _export_openvino(trunk, side: int, place: Path) -> None:
    import openvino
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(trunk, example_input=torch.zeros(1, 3, side, side + 32))
    model.reshape([1, 3, -1, -1])
    openvino.save_model(model, place.with_suffix(".xml"), compress_to_fp16=False)


def count_flops(network: str, sizes: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Operations from the image to the last map, for every size (height, width)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from spptransfer import backbones

    with torch.device("meta"):
        if network.startswith("timm/"):
            trunk = timm_model(network, max(map(max, sizes))).forward_features
        else:
            trunk = backbones.network(network).trunk("spp").eval()
    found = {}
    for height, width in sorted(set(sizes)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            trunk(torch.empty(1, 3, height, width, device="meta"))
        found[height, width] = counter.get_total_flops()
    return found
