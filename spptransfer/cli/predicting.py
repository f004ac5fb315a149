"""The command that scores new images with a saved model."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spptransfer.cli.options import (
    Compute,
    Model,
    Output,
    Weights,
    WeightsDir,
    choice,
    latest,
    printable,
    short_path,
)
from spptransfer.cli.process import interruptible
from spptransfer.errors import ConfigError
from spptransfer.files import atomic_write
from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.models import Scores, TransferModel

Format = Literal["csv", "jsonl", "parquet"]
Write = Callable[[Mapping[str, Any]], object]

# Images of a Parquet file's row group.
_TOGETHER = 1000
_CONFUSIONS = 5
_TEXTS = ("path", "label", "predicted", "error")


def predict(
    model: Model,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Images, and folders that are searched for some."),
    ],
    compute: Compute,
    words: Output,
    weights: Weights = None,
    weights_dir: WeightsDir = None,
    top: Annotated[int, choice("Classes shown per image.", min=1)] = 3,
    format: Annotated[Format | None, choice("Write a table of all numbers.", "none")] = None,
    output: Annotated[
        Path | None, choice("File for the table.", "the output stream", metavar="FILE")
    ] = None,
) -> int:
    """Score new images with a saved model: the nearest classes with probability, decision value.

    With --json one line per image with all numbers, then one for the whole. An image in a folder
    that is named after a class counts for the accuracy, which is told at the end.
    """
    from tqdm import tqdm

    from spptransfer.datasets.folder import gather_images
    from spptransfer.experiment.results import MODEL
    from spptransfer.models import TransferModel

    _check(format, output, words)
    streamed = format is not None and output is None
    model = latest(model, MODEL, dataclasses.replace(words, quiet=True) if streamed else words)
    loaded, files = TransferModel.load(model), gather_images(paths)
    given: dict[str, Any] = {"weights": weights, "weights_dir": weights_dir}
    scored = loaded.score(files, options=compute.options(), **given)
    # A table on the screen is its own progress bar; one that goes into a file needs another.
    silent = words.quiet or sys.stdout.isatty() or not sys.stderr.isatty()
    bar = tqdm(scored, total=len(files), unit="image", disable=silent)
    failed, seen = 0, Counter[tuple[str, str]]()
    # The column of names; a few long ones stand out of it.
    width = min(60, max([5, *(len(printable(file)) for file in files)]))
    kept = "nothing was written" if output else "what was printed is all"
    with (
        interruptible(f"interrupted; {kept}: no scores are kept"),
        _writer(loaded, format, output, words, width, top) as write,
    ):
        for scores in bar:
            row = _describe(loaded, scores)
            failed += "error" in row
            if "label" in row and "error" not in row and not loaded.multi_label:
                seen[row["label"], row["labels"][0]] += 1
            write(row)
    rows = {"ok": len(files) - failed, "failed": failed, "reused": 0}
    say = _aside(words) if streamed else words.say
    if failed:
        say(f"{plural(len(files), 'image')}: {rows['ok']:,} scored, {failed:,} failed")
    if output:
        say(f"scores: {short_path(output)}")
    metrics = _accuracy(seen, say)
    return words.finish(failed > 0, rows=rows, model=str(model.resolve()), metrics=metrics)


def _check(format: Format | None, output: Path | None, words: Output) -> None:
    """Refuse combinations of options before a network is loaded."""
    if output and format is None:
        raise ConfigError("--output: a table needs --format csv, jsonl or parquet")
    if format == "parquet" and output is None:
        raise ConfigError("--format parquet: give the file by --output")
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("--format parquet needs pyarrow: pip install 'spptransfer[parquet]'")
    if format and output is None and words.json:
        raise ConfigError("--format and --json write to one stream; give a file by --output")


def _aside(words: Output) -> Callable[[str], None]:
    """Return what says a line where a table has the output stream."""
    return lambda text: None if words.quiet else print(text, file=sys.stderr)


def _describe(model: TransferModel, scores: Scores) -> dict[str, Any]:
    """Return what is known of one image, by name."""
    row: dict[str, Any] = {"path": str(scores.path)}
    folder = scores.path.absolute().parent.name
    if folder in model.classes:
        row["label"] = folder
    if scores.values is None:
        return {**row, "error": scores.error}
    probability = model.probabilities(scores.values[None])[0]
    known = [None if value != value else value for value in probability.tolist()]
    return {
        **row,
        "labels": model.labels(scores.values),
        "decision_values": dict(zip(model.classes, scores.values.tolist(), strict=True)),
        "probabilities": dict(zip(model.classes, known, strict=True)),
    }


# ---- where rows go ----


@contextlib.contextmanager
def _writer(
    model: TransferModel,
    format: Format | None,
    output: Path | None,
    words: Output,
    width: int,
    top: int,
) -> Iterator[Write]:
    """Give what takes rows; a file gets its name once all of them are in it."""
    if format is None:
        yield words.emit if words.json else _in_words(model, words, width, top)
        return
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(atomic_write(output)) if output else None
        if format == "parquet":
            assert place is not None
            yield stack.enter_context(_parquet(model, place))
            return
        file: Any = sys.stdout
        if place:
            given: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
            file = stack.enter_context(open(place, "w", newline="", **given))
        if format == "jsonl":
            yield lambda row: print(json.dumps(row), file=file)
            return
        table = csv.DictWriter(file, _columns(model), lineterminator="\n")
        table.writeheader()
        yield lambda row: table.writerow(_flat(model, row))


def _in_words(model: TransferModel, words: Output, width: int, top: int) -> Write:
    """Return what says rows as lines of a table for people."""
    words.say(f"{'image':{width}}  predicted (probability, decision value)")

    def say(row: Mapping[str, Any]) -> None:
        name = f"{printable(row['path']):{width}}"
        if "error" in row:
            return words.complain(f"{name}  failed: {printable(row['error'])}")
        values, chance = row["decision_values"], row["probabilities"]
        best = sorted(model.classes, key=lambda label: -values[label])[:top]
        numbers = {
            each: f"{values[each]:+.2f}"
            if chance[each] is None
            else f"{chance[each]:.2f}, {values[each]:+.2f}"
            for each in best
        }
        shown = ", ".join(f"{printable(each)} ({numbers[each]})" for each in best)
        if model.multi_label:
            shown = f"{'; '.join(map(printable, row['labels'])) or 'none'}   [{shown}]"
        words.say(f"{name}  {shown}")

    return say


def _columns(model: TransferModel) -> list[str]:
    kinds = ("value", "probability")
    return [*_TEXTS, *(f"{kind}/{name}" for kind in kinds for name in model.classes)]


def _flat(model: TransferModel, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with a name for each number; several labels are parted by semicolons."""
    flat = {name: row[name] for name in ("path", "label", "error") if name in row}
    flat["predicted"] = ";".join(row["labels"]) if "labels" in row else None
    for kind, key in (("value", "decision_values"), ("probability", "probabilities")):
        flat |= {f"{kind}/{name}": value for name, value in row.get(key, {}).items()}
    return flat


@contextlib.contextmanager
def _parquet(model: TransferModel, file: Path) -> Iterator[Write]:
    """Give what writes rows into a Parquet file, some at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    columns, waiting = _columns(model), []
    kinds = [pa.string() if place < len(_TEXTS) else pa.float64() for place in range(len(columns))]
    schema = pa.schema(list(zip(columns, kinds, strict=True)))
    with parquet.ParquetWriter(file, schema) as writer:

        def write(row: Mapping[str, Any] | None) -> None:
            if row is not None:
                waiting.append(_flat(model, row))
            if waiting and (row is None or len(waiting) == _TOGETHER):
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        yield write
        write(None)


def _accuracy(seen: Counter[tuple[str, str]], say: Callable[[str], None]) -> dict[str, Any] | None:
    """Tell how many images in folders named after classes are right, and what is confused."""
    total = seen.total()
    if not total:
        return None
    right = sum(count for (label, found), count in seen.items() if label == found)
    say(
        f"overall accuracy: {100 * right / total:.2f} % of {plural(total, 'image')} in folders "
        "named after a class"
    )
    wrong = [(pair, count) for pair, count in seen.most_common() if pair[0] != pair[1]]
    for (label, found), count in wrong[:_CONFUSIONS]:
        say(f"  {count:,} x {printable(label)} taken for {printable(found)}")
    labels: Sequence[str] = sorted({label for label, _ in seen})
    confusion = {
        label: {found: n for (of, found), n in sorted(seen.items()) if of == label}
        for label in labels
    }
    return {"overall accuracy": right / total, "images": total, "confusion": confusion}
