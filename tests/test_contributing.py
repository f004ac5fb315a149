"""CONTRIBUTING.md draws the house as it is, and its examples run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from small_projects import draw_folder
from test_imports import MODULES, arrows

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_imports_go_down_the_drawing():
    (drawing,) = blocks("text")
    packages = {package_of(module) for module in MODULES} - {"", "__main__", "pretraining"}
    lines = [set(line.split()) & packages for line in drawing.splitlines()]
    height = {name: number for number, names in enumerate(lines) for name in names}
    assert set(height) == packages
    upwards = [
        (module, other)
        for module, path in MODULES.items()
        for other in arrows(path)
        if height.get(package_of(module), -1) > height.get(package_of(other), 99)
    ]
    assert not upwards


def test_pretraining_is_for_the_command_line_alone():
    users = {
        package_of(module)
        for module, path in MODULES.items()
        if any(package_of(other) == "pretraining" for other in arrows(path))
    }
    assert users == {"cli", "pretraining"}


@pytest.mark.slow
def test_the_examples_make_a_run_of_a_new_backbone_dataset_metric_and_protocol(tmp_path):
    draw_folder(tmp_path / "photos")
    (tmp_path / "mine.py").write_text("\n".join(blocks("python")))
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    command = [sys.executable, "mine.py", "run", "mine.yaml", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("runs/mine-*/results.json")
    results = json.loads(found.read_text(encoding="utf-8"))
    assert results["protocol"]["name"] == "mine"
    assert results["headline"]["metric"] == "top-2 accuracy"
    assert results["headline"]["value"] > 0.6
