from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from small_projects import draw_folder, draw_image


def test_run_prints_the_table_and_where_everything_is(cli, project):
    done = cli("run", "small.yaml")
    assert done.status == 0
    first = done.out.splitlines()[0]
    assert first.startswith("small: 18 images of folder; spp-mini spp (weights ")
    assert first.endswith("levels [3, 1], scales [64], view full")
    for words in ("overall accuracy", "mean per-class accuracy", "18 ok", "report", "model", "log"):
        assert words in done.out
    assert str(project) not in done.out
    assert done.out.count("precision: float32 (fewer than 64 images") == 1
    assert (
        len(re.findall(r"(?m)^computed by: torch .* on cpu \(fewer than 64 images.*\)$", done.out))
        == 1
    )
    (folder,) = (project / "runs").iterdir()
    assert (folder / "report.html").exists()
    assert "spptransfer run small.yaml" in (folder / "log.txt").read_text()


def test_the_last_line_is_json_and_the_only_one_on_stdout(cli, project):
    done = cli("run", "small.yaml", "--json")
    assert len(done.out.splitlines()) == 1
    assert "overall accuracy" in done.err
    line = done.json
    assert set(line) == {
        "status", "headline", "metrics", "rows", "run", "cache", "report", "model",
    }  # fmt: skip
    assert line["status"] == "ok"
    assert line["headline"]["metric"] == "overall accuracy"
    assert 0 <= line["headline"]["value"] <= 1
    assert line["metrics"]["overall accuracy"] == line["headline"]["value"]
    assert line["rows"] == {"ok": 18, "failed": 0, "reused": 0}
    for key in ("run", "cache", "report", "model"):
        assert Path(line[key]).is_absolute()
        assert Path(line[key]).exists()
    results = json.loads(Path(line["run"], "results.json").read_text())
    assert results["headline"] == line["headline"]
    assert results["command"] == "spptransfer run small.yaml --json"


def test_quiet_prints_warnings_alone_and_quiet_json_one_line(cli, project):
    done = cli("run", "small.yaml", "--quiet")
    assert (done.status, done.out) == (0, "")
    (warning,) = done.err.splitlines()
    assert warning.startswith("spptransfer: 3 of 3 classes have fewer than 5 test images")
    done = cli("run", "small.yaml", "--quiet", "--json")
    assert (len(done.out.splitlines()), done.err.splitlines()) == (1, [warning])
    assert done.json["rows"]["reused"] == 18


def test_several_layers_go_the_whole_way_from_the_command_line(cli, project):
    done = cli("run", "small.yaml", "--json", "--set", "features.layer=[spp, fc6]")
    assert done.status == 0
    features = json.loads(Path(done.json["run"], "results.json").read_text())["features"]
    assert features["layers"] == ["spp", "fc6"]
    assert [block["layer"] for block in features["blocks"]] == ["spp", "spp", "fc6"]
    assert "spp + fc6" in Path(done.json["report"]).read_text()
    assert "spp-mini fc6 + spp, " in cli("cache", "list").out
    assert cli("predict", "runs", "photos", "--quiet").status == 0
    exported = cli(
        "cache", "export", done.json["cache"], "a.npz", "--layers", "spp", "--levels", "1"
    )
    assert exported.status == 0
    assert np.load("a.npz")["columns"][0] == "scale64_level1_channel0_bin0_0"


def test_data_root_is_where_relative_roots_are_looked_for(cli, project, monkeypatch):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    assert cli("extract", "../small.yaml").status == 2
    assert cli("extract", "../small.yaml", "--data-root", "..").status == 0


def test_extract_counts_what_went_in_and_came_out(cli, project):
    done = cli("extract", "small.yaml")
    assert done.status == 0
    assert "18 images: 18 added, 0 changed, 0 unchanged, 0 removed, 0 failed" in done.out
    assert re.search(r"read \S+ s, compute \S+ s, write \S+ s; \d+ batches .* full", done.out)
    draw_image(project / "photos/bee/new.png", 0, 40)
    (project / "photos/cat/000.png").unlink()
    (project / "photos/dog/000.png").write_bytes(b"broken")
    done = cli("extract", "small.yaml")
    assert done.status == 1
    assert "18 images: 1 added, 1 changed, 16 unchanged, 1 removed, 1 failed" in done.out
    assert "failed: dog/000.png: no image of a known format" in done.out


@pytest.mark.parametrize("command", ["run", "extract"])
def test_failed_images_are_listed_once_and_the_status_is_1(cli, project, command):
    for number in range(15):
        (project / f"photos/bee/broken {number:02d}\n.jpg").write_bytes(b"")
    done = cli(command, "small.yaml", "--json")
    assert done.status == 1
    assert done.json["status"] == "incomplete"
    assert done.json["rows"]["failed"] == 15
    assert "failed: bee/broken 02\\n.jpg: cannot read the image: the file is empty" in done.err
    assert (done.out + done.err).count("the file is empty") == 10
    assert "... and 5 more; `spptransfer cache info` lists all" in done.err
    assert cli("cache", "info", done.json["cache"]).out.count("failed: bee/broken") == 15
    done = cli(command, "small.yaml", "--quiet")
    assert (done.status, done.out) == (1, "")
    assert done.err.count("failed:") == 10


@pytest.mark.parametrize("command", ["run", "extract"])
def test_what_is_left_out_of_a_folder_is_told(cli, project, command):
    (project / "photos/bee/new.HEIC").touch()
    (project / "photos/empty").mkdir()
    done = cli(command, "small.yaml")
    assert done.status == 0
    assert done.err.splitlines()[:2] == [
        "spptransfer: photos: skipped 1 file by suffix: .heic (1)",
        "spptransfer: photos: folders without images are no classes: empty",
    ]


@pytest.mark.parametrize("command", ["run", "train"])
def test_where_every_image_fails_the_reason_and_the_cache_are_told(cli, project, command):
    too_large = ["small.yaml", "--set", "features.scales=[100000]", "--json"]
    cache = cli("extract", *too_large).json["cache"]
    refused = cli(command, *too_large)
    assert refused.status == 2
    assert "there are no train images (18 of 18 images have no features, as 'bee/000.png': " in (
        refused.complaint
    )
    assert "at scale 100000 become" in refused.complaint
    assert "`spptransfer cache info " in refused.complaint
    assert refused.json["rows"] == {"ok": 0, "failed": 18, "reused": 0}
    assert refused.json["cache"] == cache


def test_train_uses_the_cache_alone(cli, project):
    refused = cli("train", "small.yaml")
    assert refused.status == 2
    assert "make it with `spptransfer extract`" in refused.complaint
    assert cli("extract", "small.yaml").status == 0
    for path in (project / "photos").rglob("*.png"):
        path.write_bytes(b"gone")
    done = cli("train", "small.yaml", "--json")
    assert done.status == 0
    assert done.json["rows"] == {"ok": 18, "failed": 0, "reused": 18}


@pytest.mark.parametrize("command", ["run", "extract", "train"])
def test_a_failed_image_is_no_reused_one(cli, project, command):
    for number in range(3):
        (project / f"photos/bee/broken {number}.jpg").write_bytes(b"")
    assert cli("run", "small.yaml", "--json").json["rows"] == {"ok": 18, "failed": 3, "reused": 0}
    again = cli(command, "small.yaml", "--json")
    assert again.json["rows"] == {"ok": 18, "failed": 3, "reused": 18}
    draw_image(project / "photos/bee/000.png", 0, 60)
    (project / "photos/bee/broken 1.jpg").write_bytes(b"broken in another way")
    if command != "train":
        again = cli(command, "small.yaml", "--json")
        assert again.json["rows"] == {"ok": 18, "failed": 3, "reused": 17}


def test_train_counts_the_images_of_the_dataset_not_those_of_the_cache(cli, project):
    for name in ("broken", "broken and gone"):
        (project / f"photos/bee/{name}.jpg").write_bytes(b"")
    assert cli("extract", "small.yaml").status == 1
    (project / "photos/bee/broken and gone.jpg").unlink()
    for name in ("bee/000.png", "cat/003.png"):
        (project / "photos" / name).unlink()
    done = cli("train", "small.yaml", "--json")
    assert done.json["rows"] == {"ok": 16, "failed": 1, "reused": 16}
    assert "failed: bee/broken.jpg: " in done.err
    assert "and gone" not in done.err
    results = json.loads(Path(done.json["run"], "results.json").read_text())
    assert results["dataset"]["images"] == 17
    assert [row["id"] for row in results["rows"]["failures"]] == ["bee/broken.jpg"]


def test_another_runtime_computes_the_same_and_is_on_the_record(cli, project):
    pytest.importorskip("onnxruntime", reason="runtime 'onnxruntime' is not installed")
    ours = cli("run", "small.yaml", "--json", "--cache-dir", "ours").json
    done = cli("run", "small.yaml", "--json", "--runtime", "onnxruntime").json
    assert done["metrics"] == ours["metrics"]
    results = json.loads(Path(done["run"], "results.json").read_text())
    assert results["machine"]["runtime"].startswith("onnxruntime ")
    assert "computed by: onnxruntime " in cli("cache", "info", done["cache"]).out
    again = ("--pipeline", "small.yaml", "--runtime", "onnxruntime")
    assert cli("cache", "verify", ours["cache"], *again).status == 0
    photo = "photos/bee/000.png"
    assert cli("predict", done["model"], photo, "--runtime", "onnxruntime").status == 0
    refused = cli("predict", done["model"], photo, "--runtime", "onnx")
    assert "runtime: 'onnx' is unknown" in refused.complaint


# ---- mistakes: one line, status 2, nothing lost ----

MISTAKES = [
    (["--set", "features.bakbone=alexnet"], "unknown key 'features.bakbone'; did you mean"),
    (["--set", "features.backbone=alexnt"], "did you mean 'alexnet'"),
    (["--set", "features.scales=big"], "features.scales"),
    (["--set", "protocol.splits=0"], "protocol.splits"),
    (["--set", "nonsense"], "--set nonsense: expected section.key=value"),
    (["--set", "features.weights=gone.pth"], "gone.pth"),
    (["--set", "dataset.root=nowhere"], "looked in"),
    (["--device", "tpu"], "device: 'tpu' is unknown; allowed: auto, cpu, cuda, cuda:N"),
    (["--devise", "cpu"], "--devise"),
    (["--threads", "two"], "--threads"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_gets_one_line_and_status_2(cli, project, arguments, message):
    refused = cli("run", "small.yaml", *arguments, "--json")
    assert refused.status == 2
    assert message in refused.complaint
    assert refused.json["status"] == "error"
    assert message in refused.json["message"]
    assert not (project / "runs").exists() or not list((project / "runs").iterdir())


def test_a_missing_dataset_says_where_it_was_looked_for_and_how_to_get_it(cli, project):
    refused = cli("run", "small.yaml", "--set", "dataset={name: caltech101}", "--data-root", "data")
    assert refused.status == 2
    assert f"looked in {project / 'data'}" in refused.complaint
    assert "spptransfer datasets --fetch caltech101" in refused.complaint


def test_a_folder_without_images_one_class_or_a_small_class_is_told(cli, project):
    (project / "empty").mkdir()
    draw_folder(project / "one", classes=("bee",))
    draw_folder(project / "few", classes=("bee", "cat"))
    for path in sorted((project / "few" / "cat").iterdir())[1:]:
        path.unlink()
    for root, message in {
        "empty": "no images in empty",
        "one": "one class only ('bee')",
        "few": "class 'cat' has 1 image, but the protocol needs at least 2",
    }.items():
        refused = cli("run", "small.yaml", "--set", f"dataset.root={root}")
        assert refused.status == 2
        assert message in refused.complaint


def test_a_file_that_is_no_cache_in_a_caches_place_is_told_and_kept(cli, project):
    path = Path(cli("extract", "small.yaml", "--json").json["cache"])
    path.write_bytes(b"something else")
    refused = cli("run", "small.yaml")
    assert refused.status == 2
    assert path.name in refused.complaint
    assert path.read_bytes() == b"something else"
