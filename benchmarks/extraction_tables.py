"""The figures of `extraction.py` as tables: one per cell on the terminal, one per kind in markdown.

python -m doctest benchmarks/extraction_tables.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Features further from ours are marked; MobileNetV2's are in anybody's bfloat16.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
# The same where each contender resized by its own means.
ROWS_TOLERANCE = {"float32": 2e-2, "bfloat16": 4e-2}
EAGER = "torch eager loop"

Entry = dict[str, Any]
Cell = dict[str, Any]


def title(results: dict[str, Any]) -> str:
    """The machine, in a line.

    >>> title({"processors": 2, "load before": 0.1, "gemm": {"float32": 150.2, "bfloat16": 300},
    ...        "versions": {"py": "3"}})
    '2 processors; GEMM in GFLOP/s: 150 in float32, 300 in bfloat16; load 0.1 at the start; py 3'
    """
    rates = ", ".join(f"{rate:.0f} in {name}" for name, rate in results["gemm"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['processors']} processors; GEMM in GFLOP/s: {rates}; "
        f"load {results['load before']:.1f} at the start; "
        f"{versions}"
    )


def is_over(entry: Entry) -> bool:
    """Whether features are further from ours than tolerated (a NaN is)."""
    precision = entry["precision"]
    right = entry["error"] <= TOLERANCE[precision]
    return not (right and entry["rows error"] <= ROWS_TOLERANCE[precision])


def ratios(cell: Cell) -> dict[str, float]:
    """Our rate over those of the best peer and of the eager loop, in the same precision.

    >>> def entry(name, rate, precision="float32"):
    ...     return {"contender": name, "rate": rate, "precision": precision}
    >>> cell = {"contenders": [entry("ours", 90), entry(EAGER, 30), entry("openvino", 60)]}
    >>> ratios(cell)
    {'ours / best peer': 1.5, 'ours / eager loop': 3.0}
    """
    found = {}
    for ours in (e for e in cell["contenders"] if e["contender"].startswith("ours")):
        peers = [
            entry["rate"]
            for entry in cell["contenders"]
            if not entry["contender"].startswith("ours") and entry["precision"] == ours["precision"]
        ]
        if peers:
            found[f"{ours['contender']} / best peer"] = ours["rate"] / max(peers)
        for eager in (e for e in cell["contenders"] if e["contender"] == EAGER):
            if eager["precision"] == ours["precision"]:
                found[f"{ours['contender']} / eager loop"] = ours["rate"] / eager["rate"]
    return found


def share(cell: Cell, entry: Entry, gemm: dict[str, float]) -> float:
    """Of the GEMM rate in the same precision, or in float32 where the processor has no other."""
    return entry["rate"] * cell["gflop"] / gemm.get(entry["precision"], gemm["float32"])


def show_cell(cell: Cell, gemm: dict[str, float]) -> None:
    """Print what was measured of a network at a scale."""
    busy = ", another process busy" if cell["busy"] else ""
    print(
        f"\n{cell['network']}, s = {cell['scale']}: {cell['images']} images, "
        f"{cell['gflop']:.2f} GFLOP each{busy}"
    )
    print(
        f"{'':<18}{'images/s':>9}{'seconds':>9}{'GFLOP/s':>9}{'of GEMM':>9}{'peak':>9}{'start':>8}"
        f"{'error':>10}{'rows':>10}{'load':>6}"
    )
    for entry in cell["contenders"]:
        print(
            f"{entry['contender']:<18}{entry['rate']:>9.2f}{entry['seconds']:>9.1f}"
            f"{entry['rate'] * cell['gflop']:>9.1f}{share(cell, entry, gemm):>9.0%}"
            f"{entry['peak']:>6.0f} MB{entry['start']:>6.1f} s{entry['error']:>10.1e}"
            f"{entry['rows error']:>10.1e}{entry['load']:>6.1f}  "
            f"{'OVER TOLERANCE ' * is_over(entry)}{entry['setting']}",
        )
    print(", ".join(f"{what}: {ratio:.2f}" for what, ratio in ratios(cell).items()), flush=True)


def show_markdown(results: dict[str, Any]) -> None:
    """Print tables for a page: contenders down, networks and scales across."""
    gemm = results["gemm"]
    print(f"\n{title(results)}.")
    for busy in (False, True):
        cells = [cell for cell in results["cells"] if cell["busy"] == busy]
        if not cells:
            continue
        machine = "with another process busy on one processor" if busy else "nothing beside it"
        _table(f"images/s, {machine}", cells, _rate)
        _ratio_rows(cells)
        _table(f"share of the GEMM rate, {machine}", cells, lambda c, e: f"{share(c, e, gemm):.0%}")
        _table(f"peak memory in MB, {machine}", cells, lambda c, e: f"{e['peak']:,.0f}")
        _table(
            f"relative l2 distance from our float32 features, same pixels, {machine}",
            cells,
            lambda c, e: f"{e['error']:.0e}",
        )


def _rate(cell: Cell, entry: Entry) -> str:
    wrong = " (over tolerance)" if is_over(entry) else ""
    return (
        f"{entry['rate']:.{0 if entry['rate'] >= 100 else 1 if entry['rate'] >= 10 else 2}f}{wrong}"
    )


def _table(what: str, cells: Sequence[Cell], text: Callable[[Cell, Entry], str]) -> None:
    heads = [f"{cell['network']} {cell['scale']}" for cell in cells]
    print(f"\n| {what} | {' | '.join(heads)} |\n|{'---|' * (len(cells) + 1)}")
    names = dict.fromkeys(e["contender"] for cell in cells for e in cell["contenders"])
    for name in names:
        entries = [
            next((e for e in cell["contenders"] if e["contender"] == name), None) for cell in cells
        ]
        values = [
            "–" if entry is None else text(cell, entry)
            for cell, entry in zip(cells, entries, strict=True)
        ]
        print(f"| {name} | {' | '.join(values)} |")


def _ratio_rows(cells: Sequence[Cell]) -> None:
    found = [ratios(cell) for cell in cells]
    for what in dict.fromkeys(key for one in found for key in one):
        values = [f"{one[what]:.2f}" if what in one else "–" for one in found]
        print(f"| {what} | {' | '.join(values)} |")
