"""The results of a made-up table of experiments, shared by the tests of text and page."""

from __future__ import annotations

import copy

OVERALL, PER_CLASS = "overall accuracy", "mean per-class accuracy"


def cell(row, column, value=None, std=None, missing=None):
    metrics = {
        OVERALL: {"value": value, "std": std},
        PER_CLASS: {"value": None if value is None else value - 0.01, "std": std},
    }
    return {
        "row": row,
        "column": column,
        "missing": missing,
        "value": value,
        "std": std,
        "metrics": {} if missing else metrics,
        "run": None if missing else f"{row}--{column}",
    }


RESULTS = {
    "format": "spptransfer-grid",
    "format_version": 1,
    "name": "table",
    "title": "Table 7",
    "metric": OVERALL,
    "protocol": "30 training images.",
    "n_splits": 10,
    "networks": [{"backbone": "alexnet", "weights_sha256": "e7811f103c38dc40"}],
    "rows": ["conv4", "SPP 50 bins", "fc6"],
    "columns": [
        {
            "label": "crop 224",
            "paper": {
                "ZF-5 no SPP": {"conv4": [80.12], "fc6": [87.86]},
                "ZF-5 SPP": {"conv4": [81.03], "SPP 50 bins": [89.47], "fc6": [88.54]},
            },
        },
        {"label": "full 224", "paper": {"Overfeat-7 SPP": {"SPP 50 bins": [93.42, 0.5]}}},
        {"label": "warp 224", "paper": {}},
    ],
    "cells": [
        cell("conv4", "crop 224", 0.6123, 0.004),
        cell("SPP 50 bins", "crop 224", 0.8721, 0.0045),
        cell("SPP 50 bins", "full 224", 0.8987, 0.0047),
        cell("SPP 50 bins", "warp 224", 0.8812, 0.005),
        *(
            cell("fc6", f"{view} 224", missing="weights lack fc6")
            for view in ("crop", "full", "warp")
        ),
    ],
    "command": "spptransfer run grid.yaml",
    "finished": "2026-11-22T20:00:00+00:00",
    "versions": {"spptransfer": "0.1.0", "torch": "2", "numpy": "2"},
    "machine": {"platform": "Linux", "processors": 2},
    "images": {"total": 9144, "reused": 0, "failures": []},
    "timings": {"train": 61.0, "total": 90.0},
}


def changed(**changes):
    return {**copy.deepcopy(RESULTS), **changes}
