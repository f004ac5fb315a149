"""The first minutes: shipped pipeline files by name, help, completion, paths with a `~`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from small_projects import draw_folder

from spptransfer.sections import shipped

EXACT = ("--set", "features.precision=float32")


def test_run_alone_lists_what_can_be_run_and_pretrain_what_can_be_trained(cli):
    done = cli("run")
    assert done.status == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if "  " in line}
    assert lines["your_images"].endswith("  Your own images, one folder per class")
    assert {"demo", "caltech101", "voc2007", "paper-voc2007"} < lines.keys()
    assert not any(name.startswith("pretrain-") for name in lines)
    listed = [*cli("run", "--json").json["pipelines"], *cli("pretrain", "--json").json["pipelines"]]
    assert sorted(listed) == sorted(shipped())


def test_every_command_takes_a_shipped_name_and_a_file_goes_before_it(cli, project):
    given = ("your_images", "--set", "dataset.root=photos", "--set", "protocol.splits=2", *EXACT)
    for command in ("extract", "train", "run"):
        assert cli(command, *given).status == 0
    cache = next((project / "cache").glob("*.h5"))
    assert cli("cache", "verify", cache, "--pipeline", *given).status == 0
    assert cli("cache", "prune", *given).out == "nothing to remove\n"
    (project / "your_images").write_text("dataset: {}")
    assert "'dataset.name' is missing" in cli("run", *given).complaint


@pytest.mark.parametrize("command", ["run", "extract", "pretrain"])
def test_a_name_that_is_not_shipped_gets_the_nearest(cli, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    refused = cli(command, "your_image")
    assert refused.status == 2
    assert "'your_image': No such file or directory; of those shipped" in refused.complaint
    assert "did you mean 'your_images'" in refused.complaint


def test_init_writes_a_copy_with_its_comments_and_never_over_a_file(cli, project):
    assert cli("init", "your_images").status == 0
    copy = (project / "your_images.yaml").read_text()
    assert copy == shipped()["your_images"].read_text()
    assert copy.startswith("# ")
    assert cli("run", "your_images.yaml", "--set", "dataset.root=photos", *EXACT).status == 0
    refused = cli("init", "your_images")
    assert "cannot write 'your_images.yaml': File exists" in refused.complaint
    told = cli("init", "pretrain-zf5-64", "mine.yaml").out
    assert told == "mine.yaml: edit it, then `spptransfer pretrain mine.yaml`\n"
    assert "did you mean 'demo'" in cli("init", "dmo").complaint


@pytest.mark.parametrize("way", ["~", "${PLACE}"])
def test_home_and_environment_are_replaced_in_every_path(cli, project, monkeypatch, way):
    for name in ("HOME", "USERPROFILE", "PLACE"):
        monkeypatch.setenv(name, str(project))
    places = ("--cache-dir", f"{way}/c", "--data-root", f"{way}/data")
    given = (f"{way}/small.yaml", "--set", f"dataset.root={way}/photos", *EXACT, *places)
    done = cli("run", *given, "--runs-dir", f"{way}/r", "--json")
    assert done.json["cache"].startswith(str(project / "c"))
    assert done.json["run"].startswith(str(project / "r"))
    cache = f"{way}/c/{Path(done.json['cache']).name}"
    assert cli("cache", "verify", cache, "--pipeline", *given[:5]).status == 0
    assert cli("cache", "export", cache, f"{way}/out.npz").status == 0
    weights = ("--weights", f"{way}/absent.pth")
    refused = cli("predict", f"{way}/r", f"{way}/photos/bee", *weights)
    assert f"'{project}/absent.pth'" in refused.complaint


def test_a_folder_of_runs_stands_for_its_latest(cli, project):
    first, second = (cli("run", "small.yaml", *EXACT, "--json").json["run"] for _ in range(2))
    os.utime(Path(first) / "model.safetensors", (1e9, 1e9))
    os.utime(Path(first) / "results.json", (1e9, 1e9))
    done = cli("predict", "runs", "photos/bee/000.png")
    assert done.out.splitlines()[0] == f"the latest run: runs/{Path(second).name}"
    assert cli("report", "runs", "--json").json["run"] == second
    assert "there is no model" in cli("predict", "photos", "photos/bee/000.png").complaint


def test_images_that_are_the_same_file_are_told_once_with_an_example(cli, project):
    photos = project / "photos"
    shutil.copy(photos / "bee/000.png", photos / "cat/twin.png")
    for number in range(6):  # of 13 bees 7 are one file: both halves of every split have some
        shutil.copy(photos / "bee/001.png", photos / f"bee/copy{number}.png")
    more = ("--set", "protocol.splits=3", *EXACT)
    done = cli("run", "small.yaml", "--json", *more)
    (line,) = [line for line in done.err.splitlines() if "the same image" in line]
    assert line.startswith(
        "spptransfer: the same image in two classes: 1 pair, as 'bee/000.png' and 'cat/twin.png'; "
        "the same image in training and test: "
    )
    results = json.loads(Path(done.json["run"], "results.json").read_text())
    assert results["dataset"]["same_image_in_two_classes"] == {
        "pairs": 1,
        "examples": [["bee/000.png", "cat/twin.png"]],
    }
    assert results["protocol"]["same_image_in_train_and_test"]["pairs"] >= 3
    assert line.removeprefix("spptransfer: ") in Path(done.json["run"], "log.txt").read_text()


def test_every_help_shows_examples_and_answers_to_h(cli):
    for command in (["run"], ["init"], ["predict"], ["pretrain"], ["cache", "verify"]):
        done = cli(*command, "-h")
        assert done.status == 0
        examples = done.out.partition("Examples:\n")[2].splitlines()
        assert examples
        assert all(line.startswith(f"    spptransfer {' '.join(command)}") for line in examples)


def python(*arguments, **environment) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spptransfer", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_shell_can_complete_a_command():
    asked = {"COMP_WORDS": "spptransfer ca", "COMP_CWORD": "1"}
    done = python(**asked, _SPPTRANSFER_COMPLETE="complete_bash")
    assert (done.returncode, done.stdout.split()) == (0, ["cache"])


def test_without_a_terminal_a_bar_is_printed_sparsely(project):
    done = python("run", "small.yaml", *EXACT, "--set", "protocol.splits=9", "--device", "cpu")
    assert done.returncode == 0
    assert 1 <= done.stderr.count("image/s") <= 3
    assert done.stderr.count("\r") <= 8


@pytest.mark.slow
def test_an_installed_package_starts_without_a_checkout(tmp_path):
    pytest.importorskip("pip")
    source = tmp_path / "source"
    for name in ("spptransfer", "pipelines"):
        shutil.copytree(REPOSITORY / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, install)], check=True)
    draw_folder(tmp_path / "photos")
    command = [sys.executable, "-m", "spptransfer", "run", "your_images", "--json"]
    done = subprocess.run(
        [*command, "--set", "dataset.root=photos", *EXACT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["rows"] == {"ok": 18, "failed": 0, "reused": 0}
    assert {"your_images.yaml", "pipeline.schema.json"} <= {
        path.name for path in (site / "spptransfer" / "pipelines").iterdir()
    }
