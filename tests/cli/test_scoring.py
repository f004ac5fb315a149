from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from small_projects import draw_image


@pytest.fixture
def run(finished) -> Path:
    (folder,) = (finished / "runs").iterdir()
    return folder


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder as users have them: deep, with broken files and files that are no images."""
    folder = tmp_path / "new ones"
    draw_image(folder / "a.png", 0, 30)
    draw_image(folder / "deep" / "er \n" / "b.png", 1, 31)
    (folder / "broken.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_prints_a_line_per_image(cli, run, mixed, monkeypatch):
    monkeypatch.chdir(mixed)
    done = cli("predict", run, "a.png", "deep")
    assert done.status == 0
    header, first, second = done.out.splitlines()
    assert header.endswith(" predicted (probability, decision value)")
    assert first.startswith("a.png ")
    assert second.startswith("deep/er \\n/b.png  ")
    assert first.index("bee (") == header.index("predicted")
    assert first.count("(") == 3


def test_top_says_how_many_classes_are_shown(cli, run, mixed):
    done = cli("predict", run, mixed / "a.png", "--top", "1")
    assert done.out.splitlines()[1].count("(") == 1
    assert cli("predict", run, mixed / "a.png", "--top", "99").out.count("(") == 4
    assert cli("predict", run, mixed / "a.png", "--top", "0").status == 2


def test_a_folder_of_mixed_files_is_scored_and_the_broken_ones_told(cli, run, mixed):
    done = cli("predict", run, mixed)
    assert done.status == 1
    assert "broken.jpg" in done.out
    assert "failed: cannot read the image: the file is empty" in done.out
    assert "notes.txt" not in done.out
    assert done.out.splitlines()[-1] == "3 images: 2 scored, 1 failed"


def test_json_has_a_line_per_image_and_one_for_the_whole(cli, run, mixed):
    done = cli("predict", run, mixed, "--json")
    *images, last = map(json.loads, done.out.splitlines())
    assert [Path(line["path"]).name for line in images] == ["a.png", "broken.jpg", "b.png"]
    assert images[0]["labels"] == ["bee"]
    values = images[0]["decision_values"]
    assert max(values, key=values.get) == "bee"
    assert set(values) == {"bee", "cat", "dog"}
    chance = images[0]["probabilities"]
    assert sum(chance.values()) == pytest.approx(1, abs=1e-5)
    assert max(chance, key=chance.get) == "bee"
    assert images[1] == {
        "path": str(mixed / "broken.jpg"),
        "error": "cannot read the image: the file is empty",
    }
    assert last["status"] == "incomplete"
    assert last["rows"] == {"ok": 2, "failed": 1, "reused": 0}


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_a_table_has_the_numbers_of_the_json(cli, run, mixed, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    images = [json.loads(line) for line in cli("predict", run, mixed, "--json").out.splitlines()]
    file = tmp_path / "scores"
    done = cli("predict", run, mixed, "--format", format, "--output", file)
    assert done.out.splitlines()[-1].startswith("scores: ")
    if format == "jsonl":
        assert [json.loads(line) for line in file.read_text().splitlines()] == images[:-1]
        return
    pandas = pytest.importorskip("pandas", reason="needs the extra notebooks")
    table = (pandas.read_csv if format == "csv" else pandas.read_parquet)(file)
    assert table["path"].tolist() == [image["path"] for image in images[:-1]]
    assert table["error"].notna().tolist() == [False, True, False]
    for name, kind in (("value", "decision_values"), ("probability", "probabilities")):
        for label, number in images[0][kind].items():
            assert table[f"{name}/{label}"][0] == pytest.approx(number)


def test_a_table_on_the_output_stream_has_it_alone(cli, run, mixed):
    done = cli("predict", run.parent, mixed / "a.png", mixed / "broken.jpg", "--format", "csv")
    header, *rows = done.out.splitlines()
    assert header.startswith("path,label,predicted,error,value/bee,")
    assert [row.split(",")[2] for row in rows] == ["bee", ""]


def test_what_a_table_cannot_be_written_with_is_told(cli, run, mixed, tmp_path):
    image = mixed / "a.png"
    for options, told in (
        (["--output", "x.csv"], "--output: a table needs --format"),
        (["--format", "parquet"], "--format parquet: give the file by --output"),
        (["--format", "csv", "--json"], "give a file by --output"),
    ):
        refused = cli("predict", run, image, *options)
        assert refused.status == 2
        assert told in refused.complaint


def test_images_in_folders_named_after_classes_are_counted(cli, run, tmp_path):
    for label, kind in (("bee", 0), ("cat", 0), ("cat", 1)):
        draw_image(tmp_path / "new" / label / f"{kind}.png", kind, 40 + kind)
    done = cli("predict", run, tmp_path / "new")
    told = done.out.splitlines()[-2:]
    assert told[0].startswith("overall accuracy: 66.67 % of 3 images")
    assert told[1] == "  1 x cat taken for bee"
    found = cli("predict", run, tmp_path / "new", "--json").json["metrics"]
    assert found["confusion"] == {"bee": {"bee": 1}, "cat": {"bee": 1, "cat": 1}}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_file_whose_name_is_not_utf8_is_scored_like_others(cli, run, tmp_path):
    draw_image(tmp_path / "new" / "a.png", 0, 30)
    (tmp_path / "new" / "a.png").rename(tmp_path / "new" / "\udcff.png")
    done = cli("predict", run, tmp_path / "new", "--json")
    assert done.status == 0
    assert json.loads(done.out.splitlines()[0])["path"] == str(tmp_path / "new" / "\udcff.png")


def test_a_model_says_what_it_misses_when_its_weights_are_gone(cli, finished, mixed):
    weights = shutil.copy(
        Path(__import__("spptransfer").__file__).parent / "backbones/spp_mini.safetensors",
        finished / "mine.safetensors",
    )
    places = ("--cache-dir", finished / "cache", "--runs-dir", finished / "other")
    trained = cli("run", finished / "small.yaml", *places, "--json", "--set",
                  f"features.weights={weights}")  # fmt: skip
    moved = shutil.move(weights, finished / "moved.safetensors")
    model = trained.json["model"]
    refused = cli("predict", model, mixed / "a.png")
    assert refused.status == 2
    assert "mine.safetensors" in refused.complaint
    assert "--weights FILE" in refused.complaint
    assert cli("predict", model, mixed / "a.png", "--weights", moved).status == 0
    wrong = cli("predict", model, mixed / "a.png", "--weights", "random:3")
    assert "not those that the model was trained with" in wrong.complaint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "PATH"),
        (["{run}", "nowhere.png"], "there is no image or folder 'nowhere.png'"),
        (["{run}", "{empty}"], "no images in"),
        (["{empty}", "{image}"], "there is no model"),
        (["{image}", "{image}"], "is no model of spptransfer, or damaged"),
        (["nowhere", "{image}"], "there is no model 'nowhere'"),
        (["{run}", "{image}", "--device", "tpu"], "device: 'tpu' is unknown"),
    ],
)
def test_mistakes_get_one_line(cli, run, mixed, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"run": run, "empty": tmp_path / "empty", "image": mixed / "a.png"}
    refused = cli("predict", *(argument.format(**names) for argument in arguments))
    assert refused.status == 2
    assert message in refused.complaint


def test_report_is_written_anew(cli, run, tmp_path):
    done = cli("report", run, "--json")
    assert done.status == 0
    assert Path(done.json["report"]) == run / "report.html"
    done = cli("report", run, "--output", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text().startswith("<!")
    assert str(tmp_path / "other.html") in done.out


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_told(cli, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused = cli("report", name)
    assert refused.status == 2
    assert "is not a run folder" in refused.complaint
