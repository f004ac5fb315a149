from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_network import CLASSES
from evaluation_cases import described
from PIL import Image

from spptransfer.datasets.drawing import draw
from spptransfer.runtimes import describe_runtime

SOME = sorted(CLASSES[::2])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of some classes that the network knows, below val/."""
    root = tmp_path_factory.mktemp("my data")
    rng = np.random.default_rng(0)
    for name in SOME:
        folder = root / "val" / name
        folder.mkdir(parents=True)
        size = tuple(rng.integers(80, 130, 2).tolist())
        draw(*name.split("_"), size, rng).save(folder / "1.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights that know drawn images, which are told the names of their classes."""
    return described(tmp_path_factory.mktemp("weights") / "w.safetensors", classes=CLASSES)


@pytest.fixture
def evaluated(cli, data, weights):
    """Run the command on those weights."""

    def run(*arguments, files=(weights,), name="spp-mini", root=data):
        options = [argument for path in files for argument in ("--weights", path)]
        return cli("evaluate-backbone", name, *options, "--data", root, "--threads", 2, *arguments)

    return run


def test_every_scheme_gets_a_line_of_the_table(evaluated):
    views = "center_crop,full,10-crops,10-maps,96-maps"
    done = evaluated("--size", 64, "--views", views)
    assert (done.status, done.err) == (0, "")
    first, header, *rows, last = done.out.splitlines()
    assert first == "spp-mini: 12 images of 12 classes, windows of 64 pixels"
    assert header.split("  ")[0] == "views"
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == views.split(",")
    assert [row[1] for row in cells] == ["1", "1", "10", "10", "96"]
    assert all(row[4] == "12" for row in cells)
    assert all(float(row[3]) <= float(row[2]) < 90 for row in cells)
    assert last.startswith("computed by: ")


def test_the_json_line_holds_every_number(evaluated, weights):
    done = evaluated("--size", 64, "--views", "full,96-maps", "--scales", "64,80", "--json")
    found = done.json
    assert found["status"] == "ok"
    assert found["rows"] == {"ok": 12, "failed": 0, "reused": 0}
    assert found["weights"] == [found["model"]] == [str(weights.resolve())]
    full, many = found["views"]
    assert (full["name"], full["views"], full["scales"]) == ("full", 1, [73])
    assert (many["name"], many["views"], many["scales"]) == ("96-maps", 24, [64, 80])
    assert many["top1_accuracy"] == 1 - many["top1_error"]
    assert many["images"] == 12
    assert many["seconds"] > 0
    assert found["headline"] == {
        "metric": "top-1 accuracy, 96-maps",
        "value": many["top1_accuracy"],
        "std": None,
    }
    assert found["metrics"]["top-5 accuracy, full"] == full["top5_accuracy"]
    assert len(done.out.splitlines()) == 1


def test_a_broken_image_is_named_and_the_rest_counts(evaluated, data, tmp_path):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "val" / SOME[0] / "er \n.png"
    broken.write_bytes(b"no image")
    done = evaluated("--size", 64, "--views", "full", root=tmp_path)
    assert done.status == 1
    assert done.out.splitlines()[-1].startswith("  failed: val/")
    assert "er \\n.png: no image of a known format" in done.out
    found = evaluated("--size", 64, "--views", "full", "--json", root=tmp_path).json
    assert found["status"] == "incomplete"
    assert found["rows"] == {"ok": 12, "failed": 1, "reused": 0}
    assert list(found["failures"]) == [broken.relative_to(tmp_path).as_posix()]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_another_runtime_finds_the_same_errors_and_is_on_the_record(evaluated, runtime):
    pytest.importorskip(runtime, reason=f"runtime '{runtime}' is not installed")
    views = ["--size", 64, "--views", "full,10-crops,10-maps", "--json"]
    ours = evaluated(*views, "--runtime", "torch")
    done = evaluated(*views, "--runtime", runtime)
    assert done.json["metrics"] == ours.json["metrics"]
    assert ours.json["computed_by"] == [describe_runtime("torch")]
    assert done.json["computed_by"] == [describe_runtime(runtime)]
    assert done.err.splitlines()[-1] == f"computed by: {describe_runtime(runtime)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "10-map"], "unknown scheme '10-map'; did you mean '10-maps'?"),
        (["--size", "64", "--resize", "60"], "resize: 60 is smaller than the windows of 64"),
        (["--size", "64", "--views", "96-maps", "--scales", "60"], "scales: 60 is smaller"),
        (["--size", "64", "--scales", "a,b"], "--scales: 'a,b' must be numbers"),
        (["--levels", "3,2"], "fc6.weight is 128x9600 instead of 128x2496"),
        (["--precision", "int8"], "precision: 'int8' is unknown; allowed: float32, bfloat16"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(evaluated, arguments, message):
    refused = evaluated(*arguments)
    assert (refused.status, refused.out) == (2, "" if "--size" in arguments else refused.out)
    assert message in refused.complaint


def test_weights_and_data_that_do_not_fit_are_refused_in_one_line(evaluated, data, tmp_path):
    assert "unknown backbone 'spp-mni': did you mean" in evaluated(name="spp-mni").complaint
    assert "no weights file at" in evaluated(files=[tmp_path / "no.pth"]).complaint
    assert "no folder or ZIP file" in evaluated(root=tmp_path / "nothing").complaint
    (tmp_path / "d.zip").write_bytes(b"no zip")
    assert "cannot read the ZIP file" in evaluated(root=tmp_path / "d.zip").complaint
    few = tmp_path / "few" / "val" / "ant"
    few.mkdir(parents=True)
    Image.new("RGB", (80, 80)).save(few / "1.png")
    refused = evaluated("--size", 64, root=tmp_path / "few")
    assert refused.status == 2
    assert "the network has no class 'ant'" in refused.complaint
    refused = evaluated("--size", 64, files=["embedded"])
    assert "the network has no class '" in refused.complaint


def test_the_help_lists_the_views(cli):
    done = cli("evaluate-backbone", "--help")
    assert done.status == 0
    for name in ("center_crop", "full", "10-crops", "10-maps", "96-maps", "98-maps"):
        assert name in done.out
