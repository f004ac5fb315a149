"""The notebooks: what is committed of them, and that they still do what they show."""

from __future__ import annotations

import re
import runpy

import nbformat
import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "notebooks"
NAMES = ("reuse_cached_features", "your_own_images")
REFRESH = runpy.run_path(str(FOLDER / "refresh.py"))

CHANCE = 100 / 10
LONGEST_CELL, LONGEST_OUTPUT = 24, 40
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(home|root|tmp|work|mnt|opt|usr|var|private|Users)/|\b[A-Z]:\\|site-packages"
)
STALE = "run `python notebooks/refresh.py`: the committed outputs differ from today's"


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(content):
    return [cell for cell in content.cells if cell.cell_type == "code"]


def texts(output):
    """Everything that a reader sees of an output as text."""
    data = output.get("data", {})
    shown = [text for kind, text in data.items() if kind.startswith("text/")]
    return [output.get("text", ""), *shown, *output.get("traceback", [])]


def accuracies(content):
    """Percentages in what the cells print, in order."""
    printed = [output.get("text", "") for cell in code_cells(content) for output in cell.outputs]
    return [float(number) for number in re.findall(r"(\d+\.\d)%", "".join(printed))]


def test_there_are_no_other_notebooks_than_those_tested():
    assert tuple(path.stem for path in REFRESH["NOTEBOOKS"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestCommitted:
    def test_neither_cells_nor_outputs_name_a_place_on_a_machine(self, name):
        content = read(name)
        shown = [cell.source for cell in content.cells]
        for cell in code_cells(content):
            shown += [text for output in cell.outputs for text in texts(output)]
        assert not [text for text in shown if MACHINE_PATH.search(text)]

    def test_every_cell_has_run_once_in_order_and_without_complaint(self, name):
        cells = code_cells(read(name))
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), STALE
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]

    def test_identifiers_are_words_that_stay_the_same(self, name):
        content = read(name)
        nbformat.validate(content)
        identifiers = [cell.id for cell in content.cells]
        assert len(set(identifiers)) == len(identifiers)
        assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", identifier) for identifier in identifiers)

    def test_nothing_says_when_or_with_which_python_it_ran(self, name):
        content = read(name)
        assert content.metadata.language_info == {"name": "python"}
        assert not [cell.metadata for cell in content.cells if cell.metadata]

    def test_cells_are_short_and_no_output_is_longer_than_a_screen(self, name):
        for cell in code_cells(read(name)):
            assert cell.source.count("\n") < LONGEST_CELL, cell.id
            shown = [text for output in cell.outputs for text in texts(output)[:1]]
            assert "".join(shown).count("\n") < LONGEST_OUTPUT, cell.id

    def test_the_file_is_quickly_loaded(self, name):
        assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """One working folder for all notebooks, so that they share the demo's images and cache."""
    return tmp_path_factory.mktemp("notebooks with a space")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom_and_shows_what_is_committed(name, work):
    today = REFRESH["execute"](FOLDER / f"{name}.ipynb", work)
    found, committed = accuracies(today), accuracies(read(name))
    assert len(found) >= 3
    assert min(found) > 3 * CHANCE
    assert found == pytest.approx(committed, abs=10), STALE


def test_warnings_are_left_out_and_everything_else_is_kept():
    stream = nbformat.v4.new_output
    warning = stream("stream", name="stderr", text="/opt/x.py:1: a warning\n")
    cell = nbformat.v4.new_code_cell(
        "1", outputs=[warning, stream("stream", name="stdout", text="1")]
    )
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell])
    kept = REFRESH["without_warnings"](content)
    assert [cell.cell_type for cell in kept.cells] == ["markdown", "code"]
    assert [output.text for output in kept.cells[1].outputs] == ["1"]
