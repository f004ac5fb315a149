"""The shared solver against scikit-learn's LinearSVC: seconds and peak memory, side by side.

Every contender runs in a process of its own, on the same data and with the same number of threads,
and all libraries are loaded before the clock starts, torch among them, as they are in a process
that extracts features.
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
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import svm_stream
from svm_common import collect, load, load_average, measured, relu_like, signs_of, start

VISSL_COSTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Where LinearSVC is measured for `choice`; costs in between and beyond are interpolated.
SAMPLE_COSTS = (0.01, 1.0, 100.0)
SPLIT_COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)
VISSL_WEIGHTS = {1: 2, -1: 1}


def objective(X, y, w, b, cost):
    """Float64, in blocks."""
    total = 0.5 * (w @ w + b * b)
    for at in range(0, len(X), 512):
        margin = y[at : at + 512] * (X[at : at + 512].astype(float) @ w + b)
        total += np.sum(cost[at : at + 512] * np.maximum(0, 1 - margin) ** 2)
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
    seconds = cpu = 0.0
    for k in columns:
        began, cpu_began = time.perf_counter(), time.process_time()
        model = LinearSVC(C=options.C, tol=options.liblinear_tol, dual=True, max_iter=100_000)
        model.fit(X, signs[:, k])
        seconds += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
        cost = np.full(len(X), options.C)
        values[k] = objective(X, signs[:, k], model.coef_[0], model.intercept_[0], cost)
    return {"objectives": values, "seconds": seconds, "cpu": cpu, "problems": len(columns)}


def shared_choice(X, y, options):
    from spptransfer.svm import LinearSVMCV

    search = LinearSVMCV(VISSL_COSTS, class_weight=VISSL_WEIGHTS, per_class=True).fit(X, y)
    return {"gap": float(search.cv_results_["max_duality_gap"].max()), "C": search.C_.tolist()}


def liblinear_choice(X, y, options):
    """A sample of VISSL's loop: some classes, one fold of three, a few costs.

    What is not measured is extrapolated in favour of LinearSVC: costs beyond the largest one
    measured count as that one. A fold has two thirds of the rows, and LIBLINEAR's time is linear
    in them.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.svm import LinearSVC

    columns = np.arange(y.shape[1])[options.first :: options.processes][: options.limit or 1]
    inside = np.arange(len(X)) % 3 > 0
    clocks = np.zeros((len(SAMPLE_COSTS), 2))
    X_fold, X_out = X[inside], X[~inside]
    for k in columns:
        for number, C in enumerate(SAMPLE_COSTS):
            began = np.array([time.perf_counter(), time.process_time()])
            model = LinearSVC(C=C, class_weight=VISSL_WEIGHTS, dual=True, max_iter=2000)
            model.fit(X_fold, y[inside, k])
            average_precision_score(y[~inside, k], model.decision_function(X_out))
            clocks[number] += np.array([time.perf_counter(), time.process_time()]) - began
    print(dict(zip(SAMPLE_COSTS, clocks.round(1).tolist(), strict=True)), file=sys.stderr)
    by_cost = [
        np.exp(np.interp(np.log(VISSL_COSTS), np.log(SAMPLE_COSTS), np.log(clock)))
        for clock in clocks.T
    ]
    # Three folds and a fit on all rows are 4.5 times a fold.
    seconds, cpu = (4.5 * values.sum() for values in by_cost)
    return {"seconds": seconds, "cpu": cpu, "problems": len(columns), "sampled": len(SAMPLE_COSTS)}


def make_splits(y, n_splits, per_class):
    rng = np.random.default_rng(0)
    for _ in range(n_splits):
        order = rng.permutation(len(y))
        chosen = [order[y[order] == label][:per_class] for label in np.unique(y)]
        yield np.sort(np.concatenate(chosen))


def shared_splits(X, y, options):
    from spptransfer.svm import LinearSVMCV, RowSubset, gram_matrix

    splits = list(make_splits(y, options.splits, options.per_class))
    gram = gram_matrix(X, np.float64, rows=np.concatenate(splits))
    gaps = []
    for rows in splits:
        search = LinearSVMCV(SPLIT_COSTS)
        search.fit(RowSubset(X, rows), y[rows], gram=gram.of(rows))
        gaps.append(float(search.cv_results_["max_duality_gap"].max()))
    return {"gap": max(gaps)}


def liblinear_splits(X, y, options):
    """Some classes on a whole split at a few C; other C are interpolated."""
    from sklearn.svm import LinearSVC

    rows = next(make_splits(y, 1, options.per_class))
    X, signs = X[rows], signs_of(y[rows])
    columns = list(range(signs.shape[1]))[options.first :: options.processes][: options.limit]
    clocks = np.zeros((len(SAMPLE_COSTS), 2))
    for number, C in enumerate(SAMPLE_COSTS):
        for k in columns:
            began = np.array([time.perf_counter(), time.process_time()])
            model = LinearSVC(C=C, tol=options.liblinear_tol, dual=True, max_iter=100_000)
            model.fit(X, signs[:, k])
            clocks[number] += np.array([time.perf_counter(), time.process_time()]) - began
    print(dict(zip(SAMPLE_COSTS, clocks.round(1).tolist(), strict=True)), file=sys.stderr)
    logarithm = np.log(SAMPLE_COSTS)
    by_cost = [np.exp(np.interp(np.log(SPLIT_COSTS), logarithm, np.log(c))) for c in clocks.T]
    # Three folds of two thirds of the rows at every C, and the fit at the one chosen, say 1.
    units = 2 * len(SPLIT_COSTS) + 1
    seconds, cpu = ((2 * c.sum() + c[SPLIT_COSTS.index(1.0)]) / units for c in by_cost)
    return {"seconds": seconds, "cpu": cpu, "problems": len(columns)}


def run_child(options):
    """Load the data, run one contender, print one line of JSON."""
    if options.task == "stream":
        X, y = svm_stream.open_features(options.child_data)
        contender = {"shared": svm_stream.shared_stream, "sgd": svm_stream.sgd_stream}
        print(json.dumps(measured(contender[options.contender], X, y, options)))
        return
    with np.load(options.child_data) as file:
        X, y = file["X"], file["y"]
    contender = globals()[f"{options.contender}_{options.task.replace('-', '_')}"]
    print(json.dumps(measured(contender, X, y, options)))


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
          f"{options.threads} threads, {load_average()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, X=X, y=y)
        shape = X.shape
        del X, data
        shared = collect(start(arguments, "shared", path, options.threads))
        children = [
            start(arguments, "liblinear", path, 1, first) for first in range(options.processes)
        ]
        others = [collect(child) for child in children]
    report(options, y, shape, shared, others)


def report(options, y, shape, shared, others):
    solved = sum(other["problems"] for other in others)
    whole = all_problems(options, y)
    seconds = max(other["seconds"] for other in others) * whole / solved
    cpu = sum(other["cpu"] for other in others) * whole / solved
    note = "" if whole == solved else f"extrapolated from {solved} of {whole:.0f} problems"
    if options.task == "choice":
        note = (f"extrapolated from {solved} of {whole} classes, one of three folds, "
                f"C = {', '.join(map(str, SAMPLE_COSTS))} of {len(VISSL_COSTS)}")  # fmt: skip
    gram = 4 * min(shape) ** 2 / 2**20
    print(f"{'':34}{'seconds':>10}{'CPU s':>10}{'MB over data':>14}   {load_average()}")
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
    parser.add_argument(
        "--without-torch", action="store_true", help="torch is not loaded before the clock starts"
    )
    parser.add_argument("--memory", default="1GB", help="stream: budget of LinearSVM")
    parser.add_argument(
        "--sgd-seconds", type=float, help="stream: SGDClassifier's time; default five times ours"
    )
    parser.add_argument("--best", type=float, help=argparse.SUPPRESS)
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
        svm_stream.compare_stream(options, sys.argv[1:])
    else:
        compare(options, sys.argv[1:])


if __name__ == "__main__":
    main()
