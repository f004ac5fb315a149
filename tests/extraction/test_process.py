"""Computing features leaves the process as it was, and reading in processes changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from extraction_cases import SEVERAL, awkward_images, broken_images, make_dataset, many_images

from spptransfer.extraction.batches import Part
from spptransfer.extraction.loading import load_in_processes
from spptransfer.extraction.reading import Rendering, read_image

TESTS = Path(__file__).resolve().parent.parent

LEAVING = """
import gc, os, signal, sys, threading, warnings
from pathlib import Path
import numpy as np
import torch

def state():
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    threads = {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"}  # a bar's own
    with open("/proc/self/status") as status:
        affinity = [line for line in status if line.startswith("Cpus_allowed")]
    return (
        handlers,
        list(warnings.filters),
        (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.initial_seed()),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 10_000),
        (os.getcwd(), dict(os.environ), os.umask(os.umask(0o22)), sys.getrecursionlimit()),
        np.geterr(),
        affinity,
        threads,
    )

def compare(what, before):
    for one, other in zip(before, state(), strict=True):
        assert one == other, (what, one, other)

os.chdir(sys.argv[1])
torch.set_num_threads(3)
import PIL.Image, h5py, joblib, pooch, sklearn.base, tqdm  # what they do is theirs
for name in ("onnxruntime", "openvino", "onnx"):
    try:
        __import__(name)
    except ImportError:
        pass
gc.freeze()
before = state()
import spptransfer
from spptransfer import SPPFeatures
compare("import", before)
from extraction_cases import *
before = state()  # of tests and what they import
images = [np.full((40, 50 + i, 3), i, np.uint8) for i in range(5)]
for runtime in ("torch", "auto"):
    spp = SPPFeatures("spp-mini", "embedded", scales=[64], device="cpu", runtime=runtime)
    spp.transform(images)
    compare(f"SPPFeatures {runtime}", before)
SPPFeatures(Net(), layer="high", scales=[64], device="cpu").transform(images)
compare("a user's module", before)
dataset = make_dataset(Path("images"), many_images(20) | broken_images())
run(dataset, Path("a.h5"))
run(dataset, Path("a.h5"))
compare("extract", before)
try:
    run(dataset, Path("b.h5"), backbone=net(forbidden))
except AssertionError:
    compare("an extraction that failed", before)
"""


def test_importing_and_computing_leave_the_process_as_it_was(tmp_path):
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_processes_read_what_threads_read(tmp_path):
    files = awkward_images() | broken_images() | many_images(20)
    dataset = make_dataset(tmp_path / "images", files, ("missing.png",))
    paths = [dataset.path(id) for id in dataset.ids]
    array = np.full((40, 60, 3), 7, np.uint8)
    renderings = [Rendering(32, "full"), Rendering(24, "center_crop")]
    parts = [
        Part(np.arange(len(sources)), [str(source) for source in sources], sources, ())
        for sources in (paths[:5], [array], paths[5:])
    ]
    found = list(load_in_processes(parts, renderings, processes=2))
    assert [part for part, _ in found] == parts
    for part, infos in found:
        expected = [read_image(source, renderings) for source in part.sources]
        for info, other in zip(infos, expected, strict=True):
            assert (info.digest, info.stamp, info.error) == (other.digest, other.stamp, other.error)
            assert (info.height, info.width) == (other.height, other.width)
            assert list(info.views) == list(other.views)
            for rendering, view in other.views.items():
                np.testing.assert_array_equal(info.views[rendering], view)
    assert len(SEVERAL) > 1
