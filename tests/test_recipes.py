"""The recipes in the documents do what they say."""

from __future__ import annotations

import importlib.util
import re
import shutil

import pytest
from conftest import REPOSITORY
from small_projects import draw_folder, draw_image, experiment

from spptransfer.experiment import extract_features

PAGE = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a cache and a new image, as the recipes name them."""
    work = tmp_path_factory.mktemp("recipes")
    prepared = experiment(draw_folder(work / "photos", per_class=14), work)
    shutil.move(extract_features([prepared])[0].path, work / "cache" / "mine.h5")
    draw_image(work / "new.png", 1, 99)
    return work


def lacking(block: str) -> str | None:
    """A module that a recipe imports and that is not installed."""
    names = re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def test_every_recipe_runs_after_those_before_it(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    scope: dict = {}
    for block in BLOCKS:
        if not lacking(block):
            exec(block, scope)
    said = capsys.readouterr().out
    accuracies = [float(number) for number in re.findall(r"(\d+\.\d)%", said)]
    assert len(accuracies) == 2
    assert min(accuracies) > 80
    assert scope["spp"].spec_.fingerprint == scope["cache"].fingerprint
    assert scope["probabilities"].shape == (42, 3)
    first = scope["search"].kneighbors(scope["query"])[1][0][0]
    assert scope["ids"][first].startswith("cat/")


def test_a_recipe_is_a_few_lines():
    assert len(BLOCKS) >= 7
    for block in BLOCKS:
        lines = [line for line in block.splitlines() if line and "import" not in line]
        assert len(lines) <= 5, block


def test_other_libraries_find_what_the_recipe_for_them_finds(project, monkeypatch):
    (block,) = [block for block in BLOCKS if "faiss" in block]
    pytest.importorskip("faiss", reason="faiss is not installed")
    monkeypatch.chdir(project)
    scope: dict = {}
    for each in (BLOCKS[0], block):
        exec(each, scope)
    assert scope["found"][0, 0] == 0
