"""Which scales, levels and normalisation? Every setting on the same splits of cached features.

Takes caches that hold several scales and levels, and passes over the settings that do not follow
from what a cache holds. Such caches are made by

    spptransfer extract caltech101 --set "features.levels=[6,4,3,2,1]" \\
        --set "features.scales=[224,256,320,392,448]" --set features.precision=bfloat16

and prints one table per cache. With --json a line per setting is kept, and --plot draws all lines
of that file as differences from the base, without any cache:

    python benchmarks/choosing_features.py cache/caltech101-*.h5 --data-root data --splits 3 \\
        --json study.jsonl
    python benchmarks/choosing_features.py --json study.jsonl --plot study.svg
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from spptransfer import FeatureCache, protocols
from spptransfer.datasets import open_dataset
from spptransfer.errors import CacheError, ConfigError
from spptransfer.protocols.evaluate import evaluate
from spptransfer.protocols.training import Training

PAPER = (6, 3, 2, 1)
SETTINGS = {
    "levels": [
        {"levels": PAPER},
        {"levels": (4, 3, 2, 1)},
        {"levels": (3, 2, 1)},
        {"levels": (6,)},
        {"levels": (1,)},
    ],
    "normalisation": [
        {"normalize": ("l2_block",)},
        {"normalize": ("signed_sqrt", "l2")},
        {"normalize": ("signed_sqrt", "l2_block")},
    ],
    "one scale": [{"scales": (s,)} for s in (256, 260, 320, 392, 448)],
    "several scales": [
        {"scales": pair, "combine": c}
        for pair in ((224, 320), (260, 320), (224, 256, 320, 392, 448), (224, 260, 320, 392))
        for c in (("concat", "mean", "max") if len(pair) == 2 else ("mean", "max"))
    ],
    "both": [
        {"scales": pair, "combine": "mean", "levels": levels}
        for pair in ((224, 320), (260, 320))
        for levels in ((3, 2, 1), (1,))
    ],
}
DEFAULTS = {"levels": PAPER, "scales": (224,), "combine": "concat", "normalize": ("l2",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("caches", nargs="*", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--C", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--only", choices=SETTINGS, nargs="+", default=list(SETTINGS))
    parser.add_argument("--json", type=Path, help="append a line per setting to this file")
    parser.add_argument("--plot", type=Path, help="draw the lines of --json into this SVG file")
    options = parser.parse_args()
    for path in options.caches:
        study(FeatureCache.open(path), options)
    if options.plot:
        plot([json.loads(line) for line in options.json.read_text().splitlines()], options.plot)


def study(cache: FeatureCache, options: argparse.Namespace) -> None:
    dataset = open_dataset(cache.dataset, data_root=options.data_root)
    protocol = protocols.get(cache.dataset)
    given = {"splits": options.splits} if "splits" in protocol.defaults else {}
    if dataset.multi_label and "test" not in dataset.official_splits:
        given |= {"train": "train", "test": "val"}
    settings = protocol.settings({**given, "folds": 0})
    counted = protocol.restrict(dataset, settings)
    splits = protocol.make_splits(dataset, settings)
    headline = protocol.headline(dataset.multi_label)
    about = f"{cache.spec.backbone}, {cache.spec.pooling}"
    print(f"\n{cache.dataset}, {about}: {headline} on {len(splits)} split(s)")
    for group in options.only:
        for change in SETTINGS[group]:
            chosen = {**DEFAULTS, **change}
            try:
                cache.columns(**{key: chosen[key] for key in ("levels", "scales", "combine")})
            except (ConfigError, CacheError):
                continue
            values, seconds = measure(cache, counted, splits, headline, chosen, options.C)
            shown = words(change)
            best = max(values, key=lambda C: sum(values[C]))
            listed = "  ".join(
                f"C={C:g}: {100 * sum(v) / len(v):6.2f}{'*' if best == C else ' '}"
                for C, v in values.items()
            )
            print(f"{group:15}{shown:52}{listed}  {seconds:6.1f} s", flush=True)
            if options.json:
                line = {"dataset": cache.dataset, "backbone": about, "group": group}
                line |= {"setting": shown, "metric": headline, "values": values}
                with options.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def measure(cache, dataset, splits, headline, chosen, costs):
    start = time.perf_counter()
    selection = {key: chosen[key] for key in ("levels", "scales", "combine")}
    sizes = [column.stop - column.start for column in cache.columns(**selection)]
    values = {}
    for C in costs:
        evaluation = evaluate(
            lambda ids: cache.matrix(ids, **selection),
            dataset,
            splits,
            training=Training(C=(C,)),
            normalize=chosen["normalize"],
            block_sizes=sizes,
        )
        values[C] = evaluation.values(headline)
    return values, time.perf_counter() - start


def words(change):
    """A setting as people say it."""
    shown = []
    for key, value in change.items():
        listed = value if isinstance(value, str) else ", ".join(map(str, value))
        shown.append(f"{key} {listed}")
    return "; ".join(shown)


def plot(lines, path):
    """One row per setting, one mark per data set and backbone: points gained over the base."""
    from matplotlib.figure import Figure

    best = {}
    for line in lines:
        means = [100 * sum(values) / len(values) for values in line["values"].values()]
        study = best.setdefault(f"{line['dataset']}, {line['backbone']}", {})
        study[line["setting"]] = max(means)
    base = words({"levels": PAPER})
    settings = [name for name in dict.fromkeys(line["setting"] for line in lines) if name != base]
    figure = Figure(figsize=(9, 0.34 * len(settings) + 1.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(best.items()):
        rows = [row for row, setting in enumerate(settings) if setting in values]
        gains = [values[settings[row]] - values[base] for row in rows]
        axes.plot(gains, rows, "osD^vP"[number % 6], label=f"{name} (base {values[base]:.1f})")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_xscale("symlog", linthresh=2)
    axes.set_xticks([-20, -10, -5, -2, -1, 0, 1, 2, 5])
    axes.xaxis.set_major_formatter("{x:+g}")
    axes.set_yticks(range(len(settings)), settings)
    axes.invert_yaxis()
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel(f"percentage points against {base}, scales 224, normalize l2")
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
