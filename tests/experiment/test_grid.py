"""A table of experiments: one pass, every cell like a run of its own, nothing done twice."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_grids import COLUMNS, ROWS, grid_of, machine_in
from small_projects import draw_folder, draw_image, values

from spptransfer import backbones, images
from spptransfer.cache import FeatureCache
from spptransfer.config import parse_pipeline
from spptransfer.errors import CacheError, ConfigError, DatasetError
from spptransfer.experiment import extract_grid, prepare, run, run_grid
from spptransfer.experiment import grid as grid_module
from spptransfer.extraction import Interrupted

COMMAND = "spptransfer run grid.yaml"
CELLS = 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    said: list[str] = []
    return run_grid(grid_of(photos, work, protocol={"splits": 2}), COMMAND, said.append), said, work


@pytest.fixture
def trained(monkeypatch):
    """Names of the cells that are trained."""
    seen = []
    run_with = grid_module.run_with

    def watched(experiment, *arguments, **options):
        seen.append(experiment.name)
        return run_with(experiment, *arguments, **options)

    monkeypatch.setattr(grid_module, "run_with", watched)
    return seen


# --- what it leaves ---------------------------------------------------------------------------


def test_every_cell_has_the_numbers_of_a_run_of_its_own(finished, photos, tmp_path):
    result, _, _ = finished
    cells = {(c["row"], c["column"]): c for c in result.results["cells"]}
    assert len(cells) == CELLS
    for (row, column), cell in cells.items():
        changes = {}
        for line in (*ROWS, *COLUMNS):
            if line["label"] in (row, column):
                changes |= {k.split(".")[1]: v for k, v in line.get("set", {}).items()}
        pipeline = parse_pipeline(
            values(photos, features={"levels": [6, 3, 2, 1], **changes}, protocol={"splits": 2})
        )
        alone = run(prepare("alone", pipeline, machine_in(tmp_path)), COMMAND).results
        assert cell["value"] == pytest.approx(alone["headline"]["value"], abs=1e-9), (row, column)
        assert cell["std"] == pytest.approx(alone["headline"]["std"], abs=1e-9)
        assert cell["dimension"] == alone["features"]["dimension"]


def test_every_cell_is_a_run_folder_and_the_table_knows_it(finished):
    result, _, _ = finished
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
    assert not (result.folder / "lock").exists()


def test_the_results_say_what_was_done(finished):
    result, _, _ = finished
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


def test_steps_are_told(finished):
    _, said, _ = finished
    precision, *said = said
    assert precision.startswith("precision: float32 (fewer than 64 images")
    assert said[0] == (
        "one pass of spp-mini for conv4, spp, fc6 at center_crop 64, full 64, full 72: 10 caches"
    )
    assert len(said) == 1 + CELLS
    assert all("% overall accuracy" in line for line in said[1:])


# --- one pass ---------------------------------------------------------------------------------


def test_an_image_is_decoded_once_for_the_whole_table(photos, tmp_path, monkeypatch):
    decoded = []
    decode = images._decode
    monkeypatch.setattr(
        images, "_decode", lambda data, *how: decoded.append(data) or decode(data, *how)
    )
    grid = grid_of(photos, tmp_path)
    (together,) = grid.passes()
    assert len(together) == 10
    extract_grid(grid)
    assert len(decoded) == 18
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 10


def test_levels_that_follow_from_others_need_no_cache_of_their_own(photos, tmp_path):
    rows = [
        {"label": "level 6", "set": {"features.levels": [6]}},
        {"label": "50 bins", "set": {"features.levels": [6, 3, 2, 1]}},
    ]
    grid = grid_of(photos, tmp_path, rows=rows, columns=[{"label": "full"}])
    extract_grid(grid)
    (cache,) = (tmp_path / "cache").glob("*.h5")
    assert [cell.experiment.cache[0] for cell in grid.cells] == [cache, cache]


def test_networks_and_datasets_are_passes_of_their_own(photos, tmp_path):
    other = draw_folder(tmp_path / "other", per_class=4)
    columns = [
        {"label": "here"},
        {"label": "random", "set": {"features.weights": "random:1"}},
        {"label": "there", "set": {"dataset.root": str(other)}},
    ]
    grid = grid_of(photos, tmp_path, columns=columns, rows=ROWS[1:3])
    assert [len(together) for together in grid.passes()] == [2, 2, 2]
    assert len(run_grid(grid, COMMAND).results["networks"]) == 2


def test_caches_that_are_there_are_used_and_only_new_images_are_read(photos, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    run_grid(grid_of(root, tmp_path), COMMAND)
    draw_image(root / "bee" / "new.png", 0, 77)
    decoded = []
    views = images.views
    monkeypatch.setattr(
        images, "views", lambda data, *how: decoded.append(data) or views(data, *how)
    )
    result = run_grid(grid_of(root, tmp_path), COMMAND)
    assert {(e.added, e.unchanged) for e in result.extractions} == {(1, 18)}
    assert decoded[0] == (root / "bee" / "new.png").read_bytes()


# --- going on ---------------------------------------------------------------------------------


def test_a_cell_that_is_finished_is_not_trained_again(photos, tmp_path, trained):
    first = run_grid(grid_of(photos, tmp_path), COMMAND)
    assert len(trained) == CELLS
    trained.clear()
    said: list[str] = []
    again = run_grid(grid_of(photos, tmp_path), COMMAND, said.append)
    assert trained == []
    assert sum(line.endswith(": finished before") for line in said) == CELLS
    assert again.folder == first.folder
    assert again.results["cells"] == first.results["cells"]


def test_a_table_goes_on_where_it_was_stopped(photos, tmp_path, trained, monkeypatch):
    from spptransfer.protocols import evaluate as evaluating

    evaluate, calls = evaluating.evaluate, []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(evaluating, "evaluate", stopping)
    grid = grid_of(photos, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, COMMAND)
    assert len(trained) == 4
    assert len(list(grid.folder.glob("*/results.json"))) == 3
    killed = grid.folder / trained[3]
    killed.mkdir()
    (killed / "log.txt").write_text("what a kill leaves")
    mine = grid.folder / "my notes"
    mine.mkdir()
    trained.clear()
    result = run_grid(grid_of(photos, tmp_path), COMMAND)
    assert len(trained) == CELLS - 3
    assert all(cell["value"] is not None for cell in result.results["cells"])
    assert all((path / "results.json").exists() for path in result.folder.iterdir()
               if path.is_dir() and path != mine)  # fmt: skip
    assert mine.exists()


def test_a_finished_cell_whose_report_found_no_room_gets_it_later(photos, tmp_path, trained):
    result = run_grid(grid_of(photos, tmp_path), COMMAND)
    page = next(result.folder.glob("*/report.html"))
    page.unlink()
    trained.clear()
    run_grid(grid_of(photos, tmp_path), COMMAND)
    assert page.exists()
    assert trained == []


def test_a_table_that_is_asked_to_stop_with_nothing_left_to_extract_trains_nothing(
    photos, tmp_path, trained
):
    extract_grid(grid_of(photos, tmp_path))
    stopped = grid_of(photos, tmp_path)
    stopped.machine.stop.set()
    with pytest.raises(Interrupted, match="run the same command again"):
        run_grid(stopped, COMMAND)
    assert trained == []


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
def test_other_settings_are_another_table(photos, tmp_path, changes):
    rows = ROWS[1:2]
    columns = [{"label": "full"}]
    first = run_grid(grid_of(photos, tmp_path, rows=rows, columns=columns), COMMAND)
    other = run_grid(grid_of(photos, tmp_path, rows=rows, columns=columns, **changes), COMMAND)
    assert first.folder != other.folder
    assert (first.folder / "results.json").exists()


def test_a_changed_image_trains_the_cells_anew(photos, tmp_path, trained):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    rows, columns = ROWS[1:3], [{"label": "full"}]
    run_grid(grid_of(root, tmp_path, rows=rows, columns=columns), COMMAND)
    trained.clear()
    draw_image(root / "bee" / "000.png", 2, 99)
    run_grid(grid_of(root, tmp_path, rows=rows, columns=columns), COMMAND)
    assert len(trained) == 2


def test_from_caches_no_image_is_looked_at(photos, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    with pytest.raises(CacheError, match="make it with `spptransfer extract`"):
        run_grid(grid_of(root, tmp_path), COMMAND, from_caches=True)
    extract_grid(grid_of(root, tmp_path))
    monkeypatch.setattr(images, "read_bytes", None)
    result = run_grid(grid_of(root, tmp_path), COMMAND, from_caches=True)
    assert all(cell["value"] is not None for cell in result.results["cells"])


def test_a_second_run_of_one_table_is_told_who_is_at_it(photos, tmp_path, monkeypatch):
    grid = grid_of(photos, tmp_path)
    refused = []

    def meanwhile(*_, **__):
        with pytest.raises(CacheError, match="is being written by process") as caught:
            run_grid(grid, COMMAND)
        refused.append(str(caught.value))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid_module, "extract_together_for", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, COMMAND)
    assert len(refused) == 1
    assert not (grid.folder / "lock").exists()


# --- what is missing --------------------------------------------------------------------------


@pytest.fixture
def trunk_only(tmp_path) -> Path:
    whole = backbones.load("spp-mini", "random", layer="fc6")
    network = backbones.network("spp-mini", num_classes=48)
    tensors = {k: v.contiguous() for k, v in network.state_dict().items() if "fc" not in k}
    assert whole.head is not None
    assert not any(torch.isnan(v).any() for v in tensors.values() if v.is_floating_point())
    save_file(tensors, tmp_path / "trunk.safetensors")
    return tmp_path / "trunk.safetensors"


def test_layers_that_the_weights_lack_are_cells_that_say_so(photos, tmp_path, trunk_only):
    grid = grid_of(photos, tmp_path, features={"weights": str(trunk_only)})
    assert {cell.row: cell.missing for cell in grid.cells} == {
        "conv4": "",
        "levels 3, 1": "",
        "level 1": "",
        "fc6": "weights lack fc6",
    }
    results = run_grid(grid, COMMAND).results
    for cell in results["cells"]:
        assert (cell["missing"] is None) == (cell["value"] is not None) == (cell["row"] != "fc6")


def test_a_table_of_nothing_but_missing_layers_is_refused(photos, tmp_path, trunk_only):
    with pytest.raises(ConfigError, match="no cell of the grid can be computed: weights lack fc6"):
        grid_of(photos, tmp_path, rows=ROWS[3:], features={"weights": str(trunk_only)})


def test_a_broken_image_is_a_failed_row_of_the_table(photos, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    (root / "cat" / "000.png").write_bytes(b"broken")
    result = run_grid(grid_of(root, tmp_path), COMMAND)
    assert [row["id"] for row in result.results["images"]["failures"]] == ["cat/000.png"]
    assert {len(e.failures) for e in result.extractions} == {1}


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
        ({"protocol": {"test_fractoin": 1}}, "protocol.test_fractoin is unknown"),
    ],
)
def test_a_mistake_in_any_cell_is_told_before_an_image_is_opened(
    photos, tmp_path, given, message, monkeypatch
):
    monkeypatch.setattr(images, "read_bytes", None)
    with pytest.raises(ConfigError, match=message) as caught:
        grid_of(photos, tmp_path, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_missing_dataset_is_told_as_ever(tmp_path):
    with pytest.raises(DatasetError):
        grid_of(tmp_path / "nowhere", tmp_path)


def test_the_whole_maps_cell_is_trained_on_the_map(finished, photos):
    result, _, work = finished
    grid = grid_of(photos, work, protocol={"splits": 2})
    path, spec = grid.cells[0].experiment.cache
    cache = FeatureCache.open(path)
    assert cache.spec == spec
    (side,) = spec.levels
    backbone = backbones.load("spp-mini", "embedded", layer="conv4")
    id = cache.ids[4]
    pixels = images.render(images.decode((photos / id).read_bytes()), 64, "center_crop") / 255
    normal = 255 * pixels - 128
    expected = backbone.maps(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()).numpy()
    assert expected.shape == (1, 256, side, side)
    np.testing.assert_allclose(cache.matrix([id])[0], expected.ravel(), atol=1e-5 * expected.max())
    first = result.results["cells"][0]
    assert first["dimension"] == expected.size
    assert dataclasses.replace(spec, levels=(1,)).levels == (1,)
