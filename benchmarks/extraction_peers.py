"""The contenders of `extraction.py`: ours, and its peers the way their users write them.

Each is a function that imports what it needs, loads the weights and returns a function from
files to a file of features. `measure` runs one of them; it belongs in a process of its own. What
all peers share: Pillow decodes and resizes, torch pools the map, `numpy.save` writes the rows.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = (6, 3, 2, 1)
PROCESSORS = len(os.sched_getaffinity(0))
Extract = Callable[[list[Path], Path], None]


@dataclass(frozen=True)
class Job:
    """A network at a scale, and the files.

    `model` names the files that `extraction_models.export` wrote, without their suffix.
    """

    network: str
    scale: int
    model: Path
    files: tuple[Path, ...]
    checks: tuple[Path, ...]

    @property
    def view(self) -> str:
        """Models of timm see the centre of an image, as timm's own way has it."""
        return "center_crop" if self.network.startswith("timm/") else "full"


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Parameters
    ----------
    prepare : callable
        From a job and a setting to a function that extracts.
    precision : str
        Of the arithmetic.
    settings : mapping of str to dict
        By name, arguments of `prepare`; the best one counts.
    needs : tuple of str
        Modules without which it is left out.
    """

    prepare: Callable[..., Extract]
    precision: str = "float32"
    settings: dict[str, dict[str, Any]] | None = None
    needs: tuple[str, ...] = ()


def measure(name: str, setting: str, job: Job, out: Path) -> dict[str, Any]:
    """Seconds to start and to extract, and the most memory in MB; features go to two files.

    The rows of the images to check come first, to `out`-check.npy: they are the warming up too.
    """
    import_torch_quietly()
    contender = CONTENDERS[name]
    start = time.perf_counter()
    extract = contender.prepare(job, **(contender.settings or {}).get(setting, {}))
    started = time.perf_counter() - start
    extract(list(job.checks), out.with_name(f"{out.name}-check"))
    start = time.perf_counter()
    extract(list(job.files), out.with_name(f"{out.name}-rows"))
    seconds = time.perf_counter() - start
    found = {"start": started, "seconds": seconds, "peak": (peak_bytes() + LOADERS[0]) / 1e6}
    as_arrays(out)
    return found


def import_torch_quietly() -> None:
    """Import what nobody's start is to be blamed for."""
    import torch  # noqa: F401


def peak_bytes() -> int:
    """Most memory that this process ever held."""
    # Not getrusage's figure, which a process inherits from the one that started it.
    return 1024 * status_number(Path("/proc/self/status"), "VmHWM:")


def status_number(file: Path, key: str) -> int:
    return int(file.read_text().split(key)[1].split()[0])


# What loading processes held besides the pages that they share with this one, in bytes.
LOADERS = [0]


def note_loaders() -> None:
    keys = ("Private_Clean:", "Private_Dirty:")
    files = [Path(f"/proc/{child.pid}/smaps_rollup") for child in multiprocessing.active_children()]
    held = sum(1024 * status_number(file, key) for file in files for key in keys)
    LOADERS[0] = max(LOADERS[0], held)


def as_arrays(out: Path) -> None:
    """Turn our caches into what the peers wrote, after the measurement."""
    from spptransfer import FeatureCache

    for what in ("check", "rows"):
        cache = out.with_name(f"{out.name}-{what}.h5")
        if cache.exists():
            np.save(cache.with_suffix(".npy"), FeatureCache.open(cache).matrix(levels=LEVELS))


# ---------------------------------------------------------------- ours


def ours(job: Job, precision: str, runtime: str = "") -> Extract:
    from spptransfer import backbones
    from spptransfer.datasets import Dataset
    from spptransfer.extraction import extract
    from spptransfer.runtimes import PREFERENCE, ComputeOptions
    from spptransfer.specify import feature_spec

    backbone = backbones.load(job.network, job.model.with_suffix(".safetensors"))
    spec = feature_spec(
        backbone, levels=LEVELS, scales=[job.scale], precision=precision, view=job.view
    )
    # For so few images as some cells have, `auto` would mean torch. It is torch with attention.
    fastest = PREFERENCE[precision][0] if getattr(backbone, "is_convolutional", True) else "torch"
    options = ComputeOptions(runtime=runtime or fastest)

    def run(paths: list[Path], out: Path) -> None:
        root = Path(os.path.commonpath([path.parent for path in paths]))
        ids = tuple(path.relative_to(root).as_posix() for path in paths)
        dataset = Dataset("folder", root, ids, (), np.full(len(ids), -1, np.int32))
        (done,) = extract(dataset, [spec], [out.with_name(f"{out.name}.h5")], backbone, options)
        assert not done.failures, done.failures
        print(f"  {job.network}, {precision}: {done.computed_by}", flush=True)

    return run


# ---------------------------------------------------------------- what the peers share


def resized(path: Path, scale: int) -> np.ndarray:
    """Decode an image and bring its smaller side to a scale: bytes, H x W x 3."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    ratio = scale / min(image.size)
    size = (max(scale, round(image.width * ratio)), max(scale, round(image.height * ratio)))
    return np.array(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))


def tensor(path: Path, job: Job):
    """An image as torchvision's presets have it: 3 x H x W, normalised."""
    import torch

    from spptransfer import backbones

    info, image = backbones.describe(job.network), resized(path, job.scale)
    if job.view == "center_crop":
        top, left = ((side - job.scale) // 2 for side in image.shape[:2])
        image = image[top : top + job.scale, left : left + job.scale]
    pixels = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
    mean, std = torch.tensor(info.mean), torch.tensor(info.std)
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None])


def pooled(maps) -> np.ndarray:
    """N x C x H x W maps to the N x 50C numbers of the pyramid."""
    import torch

    levels = [torch.nn.functional.adaptive_max_pool2d(maps, level) for level in LEVELS]
    return torch.cat([level.flatten(1) for level in levels], 1).numpy()


def save(rows: Iterable[np.ndarray], out: Path) -> None:
    np.save(out.with_name(f"{out.name}.npy"), np.concatenate(list(rows)))


# ---------------------------------------------------------------- torch


class Views:
    """A Dataset as everyone writes it."""

    def __init__(self, paths: list[Path], job: Job) -> None:
        self.paths, self.job = paths, job

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int):
        return tensor(self.paths[number], self.job)


def eager(job: Job, threads: int | None = None, loaders: int = 0) -> Extract:
    """Torch's network as it is: image by image, in this process or from a DataLoader."""
    import torch
    from extraction_models import read_trunk

    if threads:
        torch.set_num_threads(threads)
    trunk = read_trunk(job.network, job.model.with_suffix(".safetensors"))

    @torch.inference_mode()
    def run(paths: list[Path], out: Path) -> None:
        views: Any = Views(paths, job)
        if loaders:
            views = torch.utils.data.DataLoader(views, num_workers=loaders)
        rows = []
        for number, view in enumerate(views):
            rows.append(pooled(trunk(view if loaders else view[None])))
            if loaders and number == len(paths) // 2:
                note_loaders()
        save(rows, out)

    return run


def timm_way(job: Job, threads: int, loaders: int) -> Extract:
    """A model of timm as its users run it: crops of one size in batches of 32 from a DataLoader."""
    import torch
    from extraction_models import timm_model

    torch.set_num_threads(threads)
    model = timm_model(job.network, job.scale, job.model.with_suffix(".safetensors"))

    @torch.inference_mode()
    def run(paths: list[Path], out: Path) -> None:
        rows, views = [], Views(paths, job)
        loader = torch.utils.data.DataLoader(views, batch_size=32, num_workers=loaders)
        for number, batch in enumerate(loader):
            found = model.forward_features(batch)
            if found.dim() == 3:
                found = found[:, model.num_prefix_tokens :].mT
                found = found.unflatten(2, (round(found.shape[2] ** 0.5), -1))
            rows.append(pooled(found))
            if number == len(loader) // 2:
                note_loaders()
        save(rows, out)

    return run


# ---------------------------------------------------------------- ONNX Runtime


def onnxruntime(job: Job, threads: int, workers: int) -> Extract:
    """One session; `workers` threads of Python each take an image, `threads` within operators."""
    import onnxruntime as runtime
    import torch

    torch.set_num_threads(1)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(
        job.model.with_suffix(".onnx"), options, providers=["CPUExecutionProvider"]
    )

    def row(path: Path) -> np.ndarray:
        (maps,) = session.run(None, {"images": tensor(path, job)[None].numpy()})
        return pooled(torch.from_numpy(maps))

    def run(paths: list[Path], out: Path) -> None:
        if workers == 1:
            save(map(row, paths), out)
            return
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1)) as pool:
            save(pool.map(row, paths), out)

    return run


# ---------------------------------------------------------------- OpenVINO


def openvino(job: Job, precision: str) -> Extract:
    """Its advice for throughput: asynchronous requests, dynamic shapes, preprocessing inside."""
    import openvino as vino
    import torch

    from spptransfer import backbones

    torch.set_num_threads(1)
    info = backbones.describe(job.network)
    model = vino.Core().read_model(job.model.with_suffix(".xml"))
    process = vino.preprocess.PrePostProcessor(model)
    given = process.input().tensor().set_element_type(vino.Type.u8)
    given.set_layout(vino.Layout("NHWC")).set_shape([1, -1, -1, 3])
    process.input().model().set_layout(vino.Layout("NCHW"))
    steps = process.input().preprocess().convert_element_type(vino.Type.f32)
    steps.mean([255 * value for value in info.mean]).scale([255 * value for value in info.std])
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    compiled = vino.Core().compile_model(process.build(), "CPU", hints)

    def run(paths: list[Path], out: Path) -> None:
        rows: dict[int, np.ndarray] = {}

        def keep(request: Any, number: int) -> None:
            torch.set_num_threads(1)
            rows[number] = pooled(torch.from_numpy(request.get_output_tensor().data))

        queue = vino.AsyncInferQueue(compiled)
        queue.set_callback(keep)
        for number, path in enumerate(paths):
            queue.start_async({0: resized(path, job.scale)[None]}, number)
        queue.wait_all()
        save((rows[number] for number in range(len(paths))), out)

    return run


def _settings(*threads_and_loaders: tuple[int, int], what: str) -> dict[str, dict[str, int]]:
    key = "loaders" if what == "loader" else "workers"
    return {
        f"{threads} thread{'s' * (threads > 1)}, {count} {what}{'s' * (count > 1)}": {
            "threads": threads,
            key: count,
        }
        for threads, count in dict.fromkeys(threads_and_loaders)
    }


_HALF = max(1, PROCESSORS // 2)
RUNTIMES = {
    "torch": (),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
}

CONTENDERS: dict[str, Contender] = {
    "ours": Contender(functools.partial(ours, precision="float32")),
    **{
        f"ours, {runtime}": Contender(
            functools.partial(ours, precision="float32", runtime=runtime), needs=needs
        )
        for runtime, needs in RUNTIMES.items()
    },
    "torch eager loop": Contender(eager),
    "torch DataLoader": Contender(
        eager, settings=_settings((1, _HALF), (PROCESSORS, _HALF), what="loader")
    ),
    "timm": Contender(
        timm_way,
        settings=_settings((1, _HALF), (PROCESSORS, _HALF), what="loader"),
        needs=("timm",),
    ),
    "onnxruntime": Contender(
        onnxruntime,
        settings=_settings((PROCESSORS, 1), (1, PROCESSORS), what="caller"),
        needs=("onnx", "onnxruntime"),
    ),
    "openvino": Contender(functools.partial(openvino, precision="f32"), needs=("openvino",)),
    "ours bf16": Contender(functools.partial(ours, precision="bfloat16"), "bfloat16"),
    **{
        f"ours bf16, {runtime}": Contender(
            functools.partial(ours, precision="bfloat16", runtime=runtime),
            "bfloat16",
            needs=RUNTIMES[runtime],
        )
        for runtime in ("torch", "openvino")
    },
    "openvino bf16": Contender(
        functools.partial(openvino, precision="bf16"), "bfloat16", needs=("openvino",)
    ),
}
