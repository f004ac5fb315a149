"""Computing features leaves the process as it was, and reading in processes changes nothing."""

from __future__ import annotations

import numpy as np
from conftest import python
from extraction_cases import awkward_images, broken_images, make_dataset

from spptransfer.extraction.reading import (
    Part,
    decode_views,
    read_header,
    read_in_processes,
)
from spptransfer.images import Rendering

LEAVING = """
import gc, os, signal, sys, threading, warnings
from pathlib import Path
import numpy as np
import torch

def state():
    return (
        [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"},  # a bar's own
        list(warnings.filters),
        (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.initial_seed()),
        (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 10_000),
        (os.getcwd(), dict(os.environ), os.umask(os.umask(0o22)), sys.getrecursionlimit()),
        (np.geterr(), os.sched_getaffinity(0)),
    )

def compare(what, before):
    for one, other in zip(before, state(), strict=True):
        assert one == other, (what, one, other)

os.chdir(sys.argv[1])
torch.set_num_threads(3)
import PIL.Image, h5py, joblib, pooch, sklearn.base, tqdm  # what they do is theirs
import onnxruntime, onnx
gc.freeze()
before = state()
from spptransfer import SPPFeatures
compare("import", before)
from extraction_cases import *
before = state()  # of tests and what they import
for backbone, given in (("spp-mini", {"weights": "embedded"}), (Net(), {"layer": "high"})):
    for runtime in ("torch", "auto"):
        spp = SPPFeatures(backbone, scales=[64], device="cpu", runtime=runtime, **given)
        spp.transform([np.full((40, 50 + i, 3), i, np.uint8) for i in range(5)])
        compare(f"SPPFeatures {runtime}", before)
dataset = make_dataset(Path("images"), many_images(20) | broken_images())
for _ in range(2):
    run(dataset, Path("a.h5"))
    compare("extract", before)
try:
    run(dataset, Path("b.h5"), backbone=net(forbidden))
except AssertionError:
    compare("an extraction that failed", before)
"""


def test_importing_and_computing_leave_the_process_as_it_was(tmp_path):
    python(LEAVING, tmp_path)


def test_processes_read_what_threads_read(tmp_path):
    files = awkward_images() | broken_images()
    dataset = make_dataset(tmp_path / "images", files, ("missing.png",))
    paths = [dataset.path(id) for id in dataset.ids]
    renderings = [Rendering(32, "full"), Rendering(24, "center_crop")]
    parts = [
        Part(np.arange(len(sources)), [str(source) for source in sources], sources, ())
        for sources in (paths[:5], [np.full((40, 60, 3), 7, np.uint8)], paths[5:])
    ]
    found = list(read_in_processes(parts, renderings, processes=2))
    assert [part for part, _ in found] == parts
    for part, infos in found:
        for source, info in zip(part.sources, infos, strict=True):
            here = read_header(source)
            views = here.error or decode_views(source, here, renderings)
            assert (info.digest, info.stamp) == (here.digest, here.stamp)
            assert (info.height, info.width) == (here.height, here.width)
            if isinstance(views, str):
                assert (info.error, info.views) == (views, {})
                continue
            assert list(info.views) == renderings
            for rendering, view in views.items():
                np.testing.assert_array_equal(info.views[rendering], view)
