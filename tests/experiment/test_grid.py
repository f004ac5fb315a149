"""A table of experiments: one pass, every cell like a run of its own, nothing done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_grids import COLUMNS, ROWS, grid_of
from small_projects import draw_image, machine_in, values

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.config import parse_pipeline
from spptransfer.errors import CacheError, ConfigError
from spptransfer.experiment import extract_features, prepare, run, run_grid
from spptransfer.extraction import Interrupted
from spptransfer.files import exclusive_lock
from spptransfer.images import decode, render

COMMAND = "spptransfer run grid.yaml"
CELLS = 10


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return run_grid(grid_of(images, work, protocol={"splits": 2}), COMMAND), work


@pytest.fixture
def again(finished, images, tmp_path):
    """The finished table in a place of its own, to be run again."""
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    grid = grid_of(images, tmp_path, protocol={"splits": 2})
    assert grid.folder.name == finished[0].folder.name
    return grid


def trained(lines: list[str]) -> int:
    """Count the cells that were trained."""
    return sum("% overall accuracy" in line for line in lines)


# --- what it leaves ---------------------------------------------------------------------------


def test_every_cell_has_the_numbers_of_a_run_of_its_own(finished, images, tmp_path):
    result, _ = finished
    cells = {(c["row"], c["column"]): c for c in result.results["cells"]}
    assert len(cells) == CELLS
    for (row, column), cell in list(cells.items())[::2]:
        changes = {}
        for line in (*ROWS, *COLUMNS):
            if line["label"] in (row, column):
                changes |= {k.split(".")[1]: v for k, v in line.get("set", {}).items()}
        pipeline = parse_pipeline(
            values(images, features={"levels": [6, 3, 2, 1], **changes}, protocol={"splits": 2})
        )
        alone = run(prepare("alone", pipeline, machine_in(tmp_path)), COMMAND).results
        assert cell["value"] == pytest.approx(alone["headline"]["value"], abs=1e-9), (row, column)
        assert cell["std"] == pytest.approx(alone["headline"]["std"], abs=1e-9)
        assert cell["dimension"] == alone["features"]["dimension"]


def test_every_cell_is_a_run_folder_and_the_table_knows_it(finished):
    result, _ = finished
    for cell in result.results["cells"]:
        folder = result.folder / cell["run"]
        run_results = json.loads((folder / "results.json").read_text())
        assert run_results["headline"]["value"] == cell["value"]
        assert (run_results["cell"]["row"], run_results["cell"]["column"]) == (
            cell["row"],
            cell["column"],
        )
        names = {path.name for path in folder.iterdir()}
        assert {"results.json", "model.safetensors", "predictions.npz", "report.html"} <= names
    assert json.loads((result.folder / "results.json").read_text()) == result.results
    assert result.report == result.folder / "report.html"


def test_the_results_say_what_was_done(finished):
    result, _ = finished
    results = result.results
    assert (results["format"], results["format_version"]) == ("spptransfer-grid", 1)
    assert results["title"] == "Stripes"
    assert results["rows"] == [row["label"] for row in ROWS]
    assert [column["label"] for column in results["columns"]] == ["crop", "full 64", "full 72"]
    assert results["columns"][0]["paper"] == {"ZF-5": {"fc6": [88.54]}}
    assert results["metric"] == "overall accuracy"
    assert results["n_splits"] == 2
    assert results["images"] == {"total": 18, "reused": 0, "failures": []}
    assert results["command"] == COMMAND
    assert [network["backbone"] for network in results["networks"]] == ["spp-mini"]
    json.dumps(results, allow_nan=False)


# --- one pass ---------------------------------------------------------------------------------


def test_networks_are_passes_of_their_own_and_every_step_is_told(images, tmp_path, told):
    columns = [{"label": "here"}, {"label": "random", "set": {"features.weights": "random:1"}}]
    rows = [*ROWS[1:], {"label": "50 bins", "set": {"features.levels": [6, 3, 2, 1]}}]
    grid = grid_of(images, tmp_path, columns=columns, rows=rows)
    assert len(run_grid(grid, COMMAND).results["networks"]) == 2
    lines = told()
    assert sum(line.startswith("precision: float32 (fewer than 64 images") for line in lines) == 2
    assert sum(line.startswith("computed by: torch ") and " on cpu" in line for line in lines) == 2
    passes = [line for line in lines if line.startswith("one pass of ")]
    assert sum(line.startswith("4 caches to make: ") for line in lines) == 2
    assert passes == ["one pass of spp-mini for spp, fc6 at full 64: 4 caches"] * 2
    assert trained(lines) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier": {"C": [0.5]}},
        {"protocol": {"seed": 1}},
        {"features": {"scales": [80]}},
        {"features": {"weights": "random:3"}},
    ],
    ids=str,
)
def test_other_settings_are_another_table(images, tmp_path, changes):
    assert grid_of(images, tmp_path).folder == grid_of(images, tmp_path).folder
    assert grid_of(images, tmp_path, **changes).folder != grid_of(images, tmp_path).folder


# --- going on ---------------------------------------------------------------------------------


def test_a_cell_that_is_finished_is_not_trained_again(finished, again, told):
    page = next(again.folder.glob("*/report.html"))
    page.unlink()  # as where the disk was full
    result, lines = run_grid(again, COMMAND), told()
    assert sum(line.endswith(": finished before") for line in lines) == CELLS
    assert trained(lines) == 0
    assert result.results["cells"] == finished[0].results["cells"]
    assert page.exists()


def test_a_table_goes_on_where_it_was_killed(again, told):
    killed = sorted(path.parent for path in again.folder.glob("*/results.json"))[:3]
    for path in killed:
        (path / "results.json").unlink()
    mine = again.folder / "my notes"
    mine.mkdir()
    result = run_grid(again, COMMAND)
    assert trained(told()) == 3
    assert all(cell["value"] is not None for cell in result.results["cells"])
    assert all((path / "results.json").exists() for path in killed)
    assert mine.exists()


def test_a_table_that_is_asked_to_stop_with_nothing_left_to_extract_trains_nothing(again, told):
    shutil.rmtree(again.folder)
    again.machine.stop.set()
    with pytest.raises(Interrupted, match="run the same command again"):
        run_grid(again, COMMAND)
    assert trained(told()) == 0


def test_only_a_new_or_changed_image_is_computed_and_trains_the_cells_anew(images, tmp_path, told):
    root = shutil.copytree(images, tmp_path / "photos")
    rows, columns = ROWS[1:3], [{"label": "full"}]
    run_grid(grid_of(root, tmp_path, rows=rows, columns=columns), COMMAND)
    draw_image(root / "bee" / "new.png", 0, 77)
    draw_image(root / "bee" / "000.png", 2, 99)
    told()
    grid = grid_of(root, tmp_path, rows=rows, columns=columns)
    done = extract_features(grid.experiments)
    assert {(each.added, each.changed, each.unchanged) for each in done} == {(1, 1, 17)}
    run_grid(grid, COMMAND)
    assert trained(told()) == 2


def test_a_second_run_of_one_table_is_told_who_is_at_it(images, tmp_path):
    grid = grid_of(images, tmp_path)
    grid.folder.mkdir(parents=True)
    with (
        exclusive_lock(grid.folder / "lock", "it"),
        pytest.raises(CacheError, match=r"the table '.*' is being written by process"),
    ):
        run_grid(grid, COMMAND)


# --- what is missing --------------------------------------------------------------------------


@pytest.fixture
def trunk_only(tmp_path) -> Path:
    network = backbones.network("spp-mini", num_classes=48)
    tensors = {k: v.contiguous() for k, v in network.state_dict().items() if "fc" not in k}
    save_file(tensors, tmp_path / "trunk.safetensors")
    return tmp_path / "trunk.safetensors"


def test_layers_that_the_weights_lack_are_cells_that_say_so(images, tmp_path, trunk_only):
    grid = grid_of(images, tmp_path, features={"weights": str(trunk_only)})
    assert {cell.row: cell.missing for cell in grid.cells} == {
        "conv4": "",
        "levels 3, 1": "",
        "level 1": "",
        "fc6": "weights lack fc6",
    }
    results = run_grid(grid, COMMAND).results
    for cell in results["cells"]:
        assert (cell["missing"] is None) == (cell["value"] is not None) == (cell["row"] != "fc6")


def test_a_table_of_nothing_but_missing_layers_is_refused(images, tmp_path, trunk_only):
    with pytest.raises(ConfigError, match="no cell of the grid can be computed: weights lack fc6"):
        grid_of(images, tmp_path, rows=ROWS[3:], features={"weights": str(trunk_only)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"rows": [*ROWS, {"label": "whole", "set": {"features.levels": []}}]},
            "grid cell 'whole' x 'full 64': levels: .* allowed views: center_crop, warp",
        ),
        (
            {"rows": [*ROWS, {"label": "conv9", "set": {"features.layer": "conv9"}}]},
            "grid cell 'conv9' x 'crop': unknown layer 'conv9'",
        ),
        ({"classifier": {"C": [1, 2]}}, "grid cell 'conv4' x 'crop': classifier.C: .* a choice"),
        ({"protocol": {"test_fractoin": 1}}, "protocol.test_fractoin'"),
    ],
)
def test_a_mistake_in_any_cell_is_told_before_an_image_is_opened(images, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        grid_of(images, tmp_path, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_the_whole_maps_cell_is_trained_on_the_map(finished, images):
    result, work = finished
    grid = grid_of(images, work, protocol={"splits": 2})
    path, spec = grid.cells[0].experiment.cache
    cache = FeatureCache.open(path)
    assert cache.spec == spec
    (side,) = spec.levels
    backbone = backbones.load("spp-mini", "embedded", layer="conv4")
    id = cache.ids[4]
    pixels = render(decode((images / id).read_bytes()), 64, "center_crop") / 255
    batch = torch.from_numpy((255 * pixels - 128).transpose(2, 0, 1)[None]).float()
    expected = backbone.maps_of(batch, ["conv4"])["conv4"].numpy()
    assert expected.shape == (1, 256, side, side)
    np.testing.assert_allclose(cache.matrix([id])[0], expected.ravel(), atol=1e-5 * expected.max())
    first = result.results["cells"][0]
    assert first["dimension"] == expected.size
