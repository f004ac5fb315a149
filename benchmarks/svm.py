"""The shared solver against scikit-learn's LinearSVC: seconds and peak memory, side by side.

Every contender runs in a process of its own, on the same data and with the same number of threads.
LinearSVC runs one class per process, as fast as scikit-learn gets it. Where it would take hours,
some of its problems are measured and the time of all of them is extrapolated; the table says so.

    python benchmarks/svm.py one-c                      # 20 classes, 5,011 x 12,800
    python benchmarks/svm.py one-c --rows 3060 --classes 102 --kind classes
    python benchmarks/svm.py choice                     # 13 C x 3 folds x 20 classes, + 13 fits
    python benchmarks/svm.py splits                     # 10 splits x 5 C x 3 folds, one Gram matrix
    python benchmarks/svm.py stream                     # 100,000 x 4,096 float16 on disk, 1 GB
    python benchmarks/svm.py one-c --data features.npz  # X, y (.npz or .h5)
    python benchmarks/svm.py choice --rows 400 --features 900 --classes 4     # seconds
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VISSL_COSTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
SPLIT_COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)
VISSL_WEIGHTS = {1: 2, -1: 1}


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
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["X"].astype(np.float32, copy=False), file["y"]
    import h5py

    with h5py.File(path, "r") as file:
        return file["X"][:].astype(np.float32, copy=False), file["y"][:]


def peak_mb():
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reset_peak():
    """Forget the peak of loading the data."""
    Path("/proc/self/clear_refs").write_text("5")


def signs_of(y):
    """One column of -1, 0, +1 per problem."""
    return y if y.ndim == 2 else np.where(y[:, None] == np.unique(y), 1, -1)


def objective(X, y, w, b, cost):
    """Float64, in blocks."""
    total = 0.5 * (w @ w + b * b)
    for start in range(0, len(X), 512):
        margin = y[start : start + 512] * (X[start : start + 512].astype(float) @ w + b)
        total += np.sum(cost[start : start + 512] * np.maximum(0, 1 - margin) ** 2)
    return float(total)


def shared_one_c(X, y, options):
    from spptransfer.svm import LinearSVM

    model = LinearSVM(options.C).fit(X, y)
    return {"objectives": model.objective_.tolist(), "gap": float(model.duality_gap_.max())}


def liblinear_one_c(X, y, options):
    from sklearn.svm import LinearSVC

    signs = signs_of(y)
    columns = list(range(signs.shape[1]))[options.first :: options.processes][: options.limit]
    values = {}
    seconds = 0.0
    for k in columns:
        began = time.perf_counter()
        model = LinearSVC(C=options.C, tol=options.liblinear_tol, dual=True, max_iter=100_000)
        model.fit(X, signs[:, k])
        seconds += time.perf_counter() - began
        cost = np.full(len(X), options.C)
        values[k] = objective(X, signs[:, k], model.coef_[0], model.intercept_[0], cost)
    return {"objectives": values, "seconds": seconds, "problems": len(columns)}


def shared_choice(X, y, options):
    from spptransfer.svm import LinearSVMCV

    search = LinearSVMCV(VISSL_COSTS, class_weight=VISSL_WEIGHTS, per_class=True).fit(X, y)
    return {"gap": float(search.cv_results_["max_duality_gap"].max()), "C": search.C_.tolist()}


def liblinear_choice(X, y, options):
    """VISSL's loop for some classes: cross_val_score, then a fit, at every C."""
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import LinearSVC

    columns = np.arange(y.shape[1])[options.first :: options.processes][: options.limit]
    began = time.perf_counter()
    for k in columns:
        for C in VISSL_COSTS:
            model = LinearSVC(
                C=C, class_weight=VISSL_WEIGHTS, intercept_scaling=1.0, dual=True, max_iter=2000
            )
            cross_val_score(model, X, y[:, k], cv=3, scoring="average_precision")
            model.fit(X, y[:, k])
    return {"seconds": time.perf_counter() - began, "problems": len(columns)}


def make_splits(y, n_splits, per_class):
    rng = np.random.default_rng(0)
    for _ in range(n_splits):
        order = rng.permutation(len(y))
        chosen = [order[y[order] == label][:per_class] for label in np.unique(y)]
        yield np.sort(np.concatenate(chosen))


def shared_splits(X, y, options):
    from spptransfer.svm import LinearSVMCV, gram_matrix

    gram = gram_matrix(X, np.float64)
    gaps = []
    for rows in make_splits(y, options.splits, options.per_class):
        block = gram[np.ix_(rows, rows)]
        search = LinearSVMCV(SPLIT_COSTS).fit(X[rows], y[rows], gram=block)
        gaps.append(float(search.cv_results_["max_duality_gap"].max()))
    return {"gap": max(gaps)}


def liblinear_splits(X, y, options):
    """Some classes of one fit on a whole split, at C = 1: a cheap one among the sixteen."""
    rows = next(make_splits(y, 1, options.per_class))
    result = liblinear_one_c(X[rows], y[rows], options)
    return {"seconds": result["seconds"], "problems": result["problems"]}


def shared_stream(X, y, options):
    from spptransfer.svm import LinearSVM

    model = LinearSVM(options.C, memory=options.memory).fit(X, y)
    return {
        "objectives": model.objective_.tolist(),
        "gap": float(model.duality_gap_.max()),
        "passes": model.n_passes_,
    }


def sgd_stream(X, y, options):
    """One line per epoch: seconds in partial_fit so far, and the objectives reached."""
    from sklearn.linear_model import SGDClassifier

    classes = np.unique(y)
    model = SGDClassifier(
        loss="squared_hinge",
        alpha=1 / (options.C * len(X)),
        # The best of several schedules: the default one diverges on this loss.
        learning_rate="constant",
        eta0=0.05,
        n_jobs=options.threads,
    )
    rng = np.random.default_rng(0)
    seconds, epochs = 0.0, []
    for _ in range(options.epochs):
        for start in rng.permutation(np.arange(0, len(X), 4096)):
            began = time.perf_counter()
            rows = slice(start, start + 4096)
            model.partial_fit(X[rows].astype(np.float32), y[rows], classes)
            seconds += time.perf_counter() - began
        epochs.append((seconds, stream_objectives(X, y, model, options.C)))
    return {"seconds": seconds, "epochs": epochs}


def stream_objectives(X, y, model, C):
    """The sum over the classes, in one pass."""
    total = 0.5 * np.sum(model.coef_**2) + 0.5 * np.sum(model.intercept_**2)
    signs = signs_of(y)
    for start in range(0, len(X), 4096):
        rows = slice(start, start + 4096)
        scores = X[rows].astype(np.float64) @ model.coef_.T + model.intercept_
        total += C * np.sum(np.maximum(0, 1 - signs[rows] * scores) ** 2)
    return float(total)


def compare_stream(options, arguments):
    """Data on disk in half precision, with room for far less than the data in float32."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "X.npy"
        shape = options.rows, options.features
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        _, y = relu_like(*shape, options.classes, "classes", out=out)
        out.flush()
        del out
        np.save(path.with_name("y.npy"), y)
        print(f"stream: X {shape} float16, {options.classes} problems, memory={options.memory}")
        shared = collect(start(arguments, "shared", path, 0, options.threads))
        best = sum(shared["objectives"])
        print(
            f"LinearSVM: {shared['seconds']:.0f} s ({shared['cpu']:.0f} CPU s), "
            f"{shared['passes']} passes, {shared['extra_mb']:.0f} MB, "
            f"largest relative gap {shared['gap']:.1e}"
        )
        sgd = collect(start(arguments, "sgd", path, 0, options.threads))
    for epoch, (seconds, value) in enumerate(sgd["epochs"], 1):
        print(
            f"SGDClassifier, epoch {epoch}: {seconds:.0f} s, objective {value / best - 1:.1%} above"
        )


def read_child_data(options):
    """Arrays, or for `stream` a file that is mapped."""
    if options.task == "stream":
        path = options.child_data
        return np.load(path, mmap_mode="r"), np.load(path.with_name("y.npy"))
    with np.load(options.child_data) as file:
        return file["X"], file["y"]


def run_child(options):
    """Load the data, run one contender, print one line of JSON."""
    X, y = read_child_data(options)
    contender = globals()[f"{options.contender}_{options.task.replace('-', '_')}"]
    import sklearn.svm  # noqa: F401

    before = peak_mb()
    reset_peak()
    began, cpu_began = time.perf_counter(), time.process_time()
    result = contender(X, y, options)
    result.setdefault("seconds", time.perf_counter() - began)
    result["cpu"] = time.process_time() - cpu_began
    result["extra_mb"] = peak_mb() - before
    result["data_mb"] = X.nbytes / 2**20
    print(json.dumps(result))


def start(arguments, contender, path, first, threads):
    environment = dict(os.environ)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    command = [sys.executable, __file__, *arguments, "--contender", contender]
    command += ["--child-data", str(path), "--first", str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def collect(process):
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(output.strip().splitlines()[-1])


def all_problems(options, y):
    """How many of LinearSVC's measured units the whole task has."""
    columns = signs_of(y).shape[1]
    if options.task == "splits":
        # Each fold's problem has two thirds of the rows, and LIBLINEAR's time is linear in them.
        return columns * options.splits * (len(SPLIT_COSTS) * 3 * 2 / 3 + 1)
    return columns


def compare(options, arguments):
    data = load(options.data) if options.data else None
    if data is None:
        kind = "classes" if options.task == "splits" else options.kind
        data = relu_like(options.rows, options.features, options.classes, kind)
    X, y = data
    print(f"{options.task}: X {X.shape}, {signs_of(y).shape[1]} problems, "
          f"{options.threads} threads")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, X=X, y=y)
        shape = X.shape
        del X, data
        shared = collect(start(arguments, "shared", path, 0, options.threads))
        children = [
            start(arguments, "liblinear", path, first, 1) for first in range(options.processes)
        ]
        others = [collect(child) for child in children]
    report(options, y, shape, shared, others)


def report(options, y, shape, shared, others):
    measured = sum(other["problems"] for other in others)
    whole = all_problems(options, y)
    seconds = max(other["seconds"] for other in others) * whole / measured
    note = "" if whole == measured else f"extrapolated from {measured} of {whole:.0f} problems"
    gram = 4 * min(shape) ** 2 / 2**20
    cpu = sum(other["cpu"] for other in others) * whole / measured
    print(f"{'':34}{'seconds':>10}{'CPU s':>10}{'MB over data':>14}")
    print(
        f"{'LinearSVM, shared':34}{shared['seconds']:10.1f}{shared['cpu']:10.1f}"
        f"{shared['extra_mb']:14.0f}   "
        f"largest relative gap {shared['gap']:.1e}; 2 N^2 floats are {2 * gram:.0f} MB"
    )
    name = f"LinearSVC, {options.processes} processes"
    print(f"{name:34}{seconds:10.1f}{cpu:10.1f}{sum(o['extra_mb'] for o in others):14.0f}   {note}")
    print(f"{'ratio':34}{seconds / shared['seconds']:10.1f}{cpu / shared['cpu']:10.1f}")
    if "objectives" in shared:
        excess = [
            value / shared["objectives"][int(k)] - 1
            for other in others
            for k, value in other["objectives"].items()
        ]
        print(f"LinearSVC's objectives over ours, relative: {min(excess):.1e} to {max(excess):.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["one-c", "choice", "splits", "stream"])
    parser.add_argument("--data", type=Path, help=".npz or .h5 with X and y")
    parser.add_argument("--rows", type=int, help="default: 5011, for stream 100000")
    parser.add_argument("--features", type=int, help="default: 12800, for stream 4096")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--kind", choices=["indicator", "classes"], default="indicator")
    parser.add_argument("--C", type=float, default=1.0)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("--limit", type=int, help="LinearSVC: problems measured per process")
    parser.add_argument("--liblinear-tol", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="LinearSVC's processes")
    parser.add_argument("--memory", default="1GB", help="stream: budget of LinearSVM")
    parser.add_argument("--epochs", type=int, default=5, help="stream: of SGDClassifier")
    parser.add_argument("--folder", type=Path, help="stream: where the data go")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--child-data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    is_stream = options.task == "stream"
    options.rows = options.rows or (100_000 if is_stream else 5011)
    options.features = options.features or (4096 if is_stream else 12_800)
    if options.contender:
        run_child(options)
    elif is_stream:
        compare_stream(options, sys.argv[1:])
    else:
        compare(options, sys.argv[1:])


if __name__ == "__main__":
    main()
