"""`svm.py stream`: a feature cache larger than the memory budget, against SGDClassifier."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from svm_common import collect, load_average, relu_like, signs_of, start

# The excess over the minimum that the peer's times are reported for.
MARKS = (0.1, 0.03, 0.01, 0.003, 0.001)


def write_features(path, n_rows, n_features, n_classes, kind):
    """A cache in half precision, as `spptransfer extract` would have written it."""
    from spptransfer import images
    from spptransfer.cache.layout import blocks_of
    from spptransfer.cache.rows import OK, RowTable
    from spptransfer.cache.writer import CacheWriter
    from spptransfer.ids import Ids
    from spptransfer.spec import FeatureSpec

    preprocessing = {**images.description(), "mean": [0, 0, 0], "std": [1, 1, 1]}
    spec = FeatureSpec(
        backbone="made up",
        weights_sha256="00",
        layers=("spp",),
        levels=(1,),
        scales=(64,),
        preprocessing=preprocessing,
        storage="float16",
    )
    with tempfile.TemporaryFile(dir=path.parent) as file:
        X = np.memmap(file, np.float16, "w+", shape=(n_rows, n_features))
        _, y = relu_like(n_rows, n_features, n_classes, kind, out=X)
        ids = [f"{i:08d}" for i in range(n_rows)]
        channels = {"spp": n_features}
        (block,) = blocks_of(spec, channels)
        with CacheWriter(
            path, spec=spec, channels=channels, dataset="made up", ids=Ids(ids), labels=None
        ) as writer:
            for at in range(0, n_rows, 4096):
                table = RowTable.empty(ids[at : at + 4096])
                table.status[:] = OK
                positions = np.arange(at, at + len(table))
                writer.put(positions, table, {block: np.asarray(X[positions])}, "made up")
            writer.finish()
    return y


def open_features(path):
    """The cache's features as they are stored, and the labels beside it."""
    from spptransfer.cache import FeatureCache

    return FeatureCache.open(path).view(dtype=np.float16), np.load(path.with_suffix(".npy"))


def shared_stream(X, y, options):
    from spptransfer.svm import LinearSVM

    model = LinearSVM(options.C, memory=options.memory).fit(X, y)
    return {
        "objective": float(model.objective_.sum()),
        "gap": float(model.duality_gap_.max()),
        "passes": model.n_passes_,
    }


def sgd_stream(X, y, options):
    """Epochs of `partial_fit` on blocks in random order, until the time is up.

    The best of several schedules tried on a smaller problem: a constant rate, divided by three
    when an epoch hardly helps. The default schedule diverges on this loss.
    """
    from sklearn.linear_model import SGDClassifier

    classes, rate = np.unique(y), 0.1
    model = SGDClassifier(
        loss="squared_hinge",
        alpha=1 / (options.C * len(X)),
        learning_rate="constant",
        eta0=rate,
        n_jobs=options.threads,
        random_state=0,
    )
    rng = np.random.default_rng(0)
    seconds, cpu, epochs, last = 0.0, 0.0, [], np.inf
    while seconds < options.sgd_seconds and last > (1 + MARKS[-1]) * options.best:
        for at in rng.permutation(np.arange(0, len(X), 4096)):
            began, cpu_began = time.perf_counter(), time.process_time()
            block = X[at : at + 4096].astype(np.float32)
            order = rng.permutation(len(block))
            model.partial_fit(block[order], y[at : at + 4096][order], classes)
            seconds += time.perf_counter() - began
            cpu += time.process_time() - cpu_began
        value = objective_of(X, y, model, options.C)
        epochs.append((seconds, cpu, value, model.eta0))
        if value > 0.98 * last:
            rate /= 3
            model.set_params(eta0=rate)
        last = min(last, value)
    return {"seconds": seconds, "epochs": epochs}


def objective_of(X, y, model, C):
    """The sum over the classes, in one pass."""
    total = 0.5 * np.sum(model.coef_**2) + 0.5 * np.sum(model.intercept_**2)
    signs = signs_of(y)
    for at in range(0, len(X), 4096):
        rows = slice(at, at + 4096)
        scores = X[rows].astype(np.float32) @ model.coef_.T.astype(np.float32) + model.intercept_
        total += C * np.sum(np.maximum(0, 1 - signs[rows] * scores) ** 2, dtype=np.float64)
    return float(total)


def compare_stream(options, arguments):
    """Both contenders on the same file, one after the other."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "features.h5"
        y = write_features(path, options.rows, options.features, options.classes, "classes")
        np.save(path.with_suffix(".npy"), y)
        shape = options.rows, options.features
        size = 2 * options.rows * options.features / 2**20
        print(f"stream: X {shape} float16, {size:.0f} MB on disk, {options.classes} problems, "
              f"memory={options.memory}, {options.threads} threads, {load_average()}")  # fmt: skip
        ours = collect(start(arguments, "shared", path, options.threads))
        print(
            f"LinearSVM: {ours['seconds']:.0f} s ({ours['cpu']:.0f} CPU s), {ours['passes']} "
            f"passes, {ours['extra_mb']:.0f} MB over what was there, relative gap at most "
            f"{ours['gap']:.1e}"
        )
        limit = options.sgd_seconds or 5 * ours["seconds"]
        more = ["--best", str(ours["objective"]), "--sgd-seconds", str(limit)]
        sgd = collect(start([*arguments, *more], "sgd", path, options.threads))
    report_stream(ours, sgd)


def report_stream(ours, sgd):
    """The peer's excess over the certified minimum, by time."""
    epochs = [(s, c, value / ours["objective"] - 1) for s, c, value, _ in sgd["epochs"]]
    print(f"SGDClassifier.partial_fit: {len(epochs)} epochs, {epochs[-1][0] / len(epochs):.1f} s "
          f"({epochs[-1][1] / len(epochs):.1f} CPU s) each, {load_average()}")  # fmt: skip
    for mark in MARKS:
        reached = [(s, c) for s, c, excess in epochs if excess <= mark]
        text = f"after {reached[0][0]:.0f} s ({reached[0][1]:.0f} CPU s)" if reached else "not"
        print(f"  {mark:.1%} above our objective: {text}")
    for name, limit, column in (("seconds", ours["seconds"], 0), ("CPU s", ours["cpu"], 1)):
        within = [epoch[2] for epoch in epochs if epoch[column] <= limit]
        best = f"{min(within):.2%} above" if within else "no epoch finished"
        print(f"  in the same {limit:.0f} {name}: {best}")
    print(f"  best when stopped: {min(excess for *_, excess in epochs):.2%} above")
