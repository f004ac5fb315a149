"""The SPP-net paper's tables 2 and 3 in small: is SPP better, is multi-size, is the whole image?

Trains a ZF-5 for small images without SPP, with SPP at one size, and with SPP at two sizes, each
from several seeds and with the same number of epochs; then counts the validation errors of a
central crop, of the whole image, and of ten views. Runs that are finished are not repeated, and
unfinished ones go on where they stopped, so that the command may be given again at any time.

    python benchmarks/small_tables.py --data-root DIR                # 3 seeds, hours
    python benchmarks/small_tables.py --data-root DIR --seeds 1 --epochs 1       # half an hour
    python benchmarks/small_tables.py --data-root DIR --figure curves.svg --markdown table.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PIPELINE = Path(__file__).parents[1] / "pipelines" / "pretrain-small-tables.yaml"
# Name of a column -> its network and the sizes it is trained at.
VARIANTS = {
    "no SPP": ("zf5-64-no-spp", "single"),
    "SPP, single-size": ("zf5-64", "single"),
    "SPP, multi-size": ("zf5-64", "multi"),
}
# Without SPP, the fully connected layers are made for the map of one crop.
VIEWS = {"center_crop": 3, "full": 2, "10-crops": 3, "10-maps": 2}
QUESTIONS = (
    ("SPP, single-size, against no SPP: one crop", ("SPP, single-size", "center_crop"),
     ("no SPP", "center_crop")),
    ("SPP, single-size, against no SPP: ten crops", ("SPP, single-size", "10-crops"),
     ("no SPP", "10-crops")),
    ("multi-size against single-size: one crop", ("SPP, multi-size", "center_crop"),
     ("SPP, single-size", "center_crop")),
    ("multi-size against single-size: whole image", ("SPP, multi-size", "full"),
     ("SPP, single-size", "full")),
    ("multi-size against single-size: ten crops", ("SPP, multi-size", "10-crops"),
     ("SPP, single-size", "10-crops")),
    ("whole image against one crop: single-size", ("SPP, single-size", "full"),
     ("SPP, single-size", "center_crop")),
    ("whole image against one crop: multi-size", ("SPP, multi-size", "full"),
     ("SPP, multi-size", "center_crop")),
    ("ten views on maps against ten crops: single-size", ("SPP, single-size", "10-maps"),
     ("SPP, single-size", "10-crops")),
)  # fmt: skip

Run = tuple[str, int]
Errors = dict[str, dict[str, float]]


def folder_of(out: Path, run: Run) -> Path:
    name, seed = run
    return out / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def history_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(run: Run, options: argparse.Namespace) -> None:
    """Train one network in a process of its own, with one thread."""
    folder = folder_of(options.out, run)
    if len(history_of(folder)) >= options.epochs:
        return
    name, seed = run
    network, sizes = VARIANTS[name]
    settings = {
        "network.name": network,
        "images.sizes": sizes,
        "training.seed": seed,
        "training.epochs": options.epochs,
    }
    command = [sys.executable, "-m", "spptransfer", "pretrain", str(PIPELINE), "--threads", "1"]
    command += ["--jobs", "0"]  # one processor for each run
    command += ["--data-root", str(options.data_root), "--out", str(folder), "--quiet"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    print(f"training {folder.name}", flush=True)
    subprocess.run(command, check=True)


def evaluate(run: Run, options: argparse.Namespace) -> Errors:
    """Errors in percent, by view; read from the run's folder if they are there."""
    folder = folder_of(options.out, run)
    record = folder / "errors.json"
    if record.exists():
        return json.loads(record.read_text())
    views = [view for view, columns in VIEWS.items() if columns == 3 or run[0] != "no SPP"]
    command = [sys.executable, "-m", "spptransfer", "evaluate-backbone", VARIANTS[run[0]][0]]
    command += ["--weights", str(folder / "weights.safetensors"), "--json", "--threads", "1"]
    command += ["--data", str(options.data_root / options.archive), "--views", ",".join(views)]
    print(f"evaluating {folder.name}", flush=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])["views"]
    errors = {
        view["name"]: {f"top-{k}": 100 * view[f"top{k}_error"] for k in (1, 5)} for view in found
    }
    record.write_text(json.dumps(errors, indent=1))
    return errors


def spread(values: list[float], signed: bool = False) -> str:
    """Mean and standard deviation over the seeds."""
    mean = f"{statistics.mean(values):+.2f}" if signed else f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table(errors: dict[Run, Errors], seeds: list[int]) -> str:
    """The errors, and the answers as differences between runs of the same seed."""
    lines = ["| view | " + " | ".join(f"{name}: top-1 / top-5 error %" for name in VARIANTS) + " |"]
    lines.append("|---" * (1 + len(VARIANTS)) + "|")
    for view in VIEWS:
        cells = []
        for name in VARIANTS:
            rows = [errors[name, seed].get(view) for seed in seeds]
            found = [row for row in rows if row]
            cells.append(
                " / ".join(spread([row[key] for row in found]) for key in ("top-1", "top-5"))
                if found
                else ""
            )
        lines.append(f"| {view} | " + " | ".join(cells) + " |")
    lines += ["", "| question | gain in top-1 accuracy, points | each seed |", "|---|---|---|"]
    for question, (one, view), (other, other_view) in QUESTIONS:
        gains = [
            errors[other, seed][other_view]["top-1"] - errors[one, seed][view]["top-1"]
            for seed in seeds
        ]
        each = ", ".join(f"{gain:+.2f}" for gain in gains)
        lines.append(f"| {question} | {spread(gains, signed=True)} | {each} |")
    return "\n".join(lines)


def draw(histories: dict[Run, list[dict[str, Any]]], path: Path) -> None:
    """Validation accuracy over the epochs, a line for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    keys = {"val_top1": "top-1 accuracy, one crop, %", "cross_entropy": "training cross entropy"}
    for panel, (key, title) in zip(panels, keys.items(), strict=True):
        for number, name in enumerate(VARIANTS):
            runs = [history for (own, _), history in histories.items() if own == name]
            for i, history in enumerate(runs):
                values = [line[key] * (100 if key == "val_top1" else 1) for line in history]
                epochs = [line["epoch"] for line in history]
                panel.plot(epochs, values, f"C{number}", lw=1, label=None if i else name)
        panel.set(title=title, xlabel="epoch")
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--archive", default="tiny-imagenet-40k.zip", help="below --data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/small-tables"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--figure", type=Path, help="where the curves' picture goes")
    parser.add_argument("--markdown", type=Path, help="where the tables go, beside the terminal")
    options = parser.parse_args()
    seeds = list(range(options.seeds))
    runs = [(name, seed) for seed in seeds for name in VARIANTS]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: train(run, options), runs))
        errors = dict(zip(runs, pool.map(lambda run: evaluate(run, options), runs), strict=True))
    text = table(errors, seeds)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.figure:
        draw({run: history_of(folder_of(options.out, run)) for run in runs}, options.figure)


if __name__ == "__main__":
    main()
