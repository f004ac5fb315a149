"""What the solver's benchmarks share: data, memory in use, contenders in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("svm.py")


def relu_like(n_rows, n_columns, n_classes, kind, seed=0, rank=200, out=None):
    """Half-zero rows of unit length with a power-law spectrum, like pooled feature maps."""
    rng = np.random.default_rng(seed)
    decay = np.arange(1, rank + 1)
    number = np.arange(n_rows) % n_classes
    latent = rng.normal(size=(n_rows, rank)) * decay**-0.7
    latent += (0.6 * rng.normal(size=(n_classes, rank)) * decay**-0.4)[number]
    mixing = rng.normal(size=(rank, n_columns)).astype(np.float32)
    X = np.empty((n_rows, n_columns), dtype=np.float32) if out is None else out
    for start in range(0, n_rows, 500):
        block = latent[start : start + 500].astype(np.float32) @ mixing
        block += 0.8 * rng.standard_normal(block.shape, dtype=np.float32)
        np.maximum(block, 0, out=block)
        X[start : start + 500] = block / np.linalg.norm(block, axis=1)[:, None]
    if kind == "classes":
        return X, number
    Y = np.where(number[:, None] == np.arange(n_classes), 1, -1)
    Y[rng.random(Y.shape) < 0.03] = 1
    return X, Y


def load(path):
    """X and y from an .npz or .h5 file."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["X"].astype(np.float32, copy=False), file["y"]
    import h5py

    with h5py.File(path, "r") as file:
        return file["X"][:].astype(np.float32, copy=False), file["y"][:]


def signs_of(y):
    """One column of -1, 0, +1 per problem."""
    return y if y.ndim == 2 else np.where(y[:, None] == np.unique(y), 1, -1)


def peak_mb():
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def resident_mb():
    """Resident size of this process."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def reset_peak():
    """Forget the peak of loading the data."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(contender, X, y, options):
    """Run a contender; what it says, with seconds, CPU seconds and memory beside the data.

    Libraries are loaded, and have run once on a smaller task: what they hold is not the task's.
    """
    load_libraries(options)
    before = resident_mb()
    reset_peak()
    began, cpu_began = time.perf_counter(), time.process_time()
    result = contender(X, y, options)
    result.setdefault("seconds", time.perf_counter() - began)
    result.setdefault("cpu", time.process_time() - cpu_began)
    result["extra_mb"] = peak_mb() - before
    return result


def load_libraries(options):
    import sklearn.svm

    from spptransfer.svm import LinearSVM

    if not options.without_torch:
        import torch  # noqa: F401
    rng = np.random.default_rng(0)
    X, y = rng.random((2000, 4000), dtype=np.float32), np.arange(2000) % 80
    LinearSVM().fit(X, y)
    sklearn.svm.LinearSVC(max_iter=1000, tol=10.0).fit(X[:100], y[:100] % 2)


def start(arguments, contender, path, threads, first=0):
    """A process of its own for one contender."""
    environment = dict(os.environ)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    command = [sys.executable, str(SCRIPT), *arguments, "--contender", contender]
    command += ["--child-data", str(path), "--first", str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def collect(process):
    """What a contender printed last."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(output.strip().splitlines()[-1])


def load_average():
    """How busy the machine is, for the record."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
