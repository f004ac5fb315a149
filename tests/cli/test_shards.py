"""`extract` in shards: side by side, or one at a time, and the same cache in the end."""

from __future__ import annotations

import shlex
import shutil

import numpy as np
import pytest

from spptransfer.cache import FeatureCache

EXACT = ("extract", "small.yaml", "--set", "features.precision=float32")


def same_rows(first: str, second: str) -> bool:
    """Whether two caches hold the same images and the same numbers."""
    one, two = FeatureCache.open(first), FeatureCache.open(second)
    assert one.digests() == two.digests()
    np.testing.assert_allclose(two.matrix(one.ids), one.matrix(), rtol=1e-4, atol=1e-5)
    return list(one.ids) == list(two.ids)


@pytest.mark.slow
def test_worker_processes_that_are_kept_follow_the_caller_to_another_folder(
    cli, project, monkeypatch
):
    for name in ("first", "second"):
        (project / name).mkdir()
        shutil.copytree(project / "photos", project / name / "photos")
        shutil.copy(project / "small.yaml", project / name)
        monkeypatch.chdir(project / name)
        done = cli(*EXACT, "--json", "--cache-dir", "cache", "--shards", "2")
        assert done.json["rows"] == {"ok": 18, "failed": 0, "reused": 0}
        assert len(list((project / name / "cache").glob("*.h5"))) == 1


def test_shards_made_by_hand_are_merged_as_the_command_says(cli, project):
    (project / "photos/cat/000.png").write_bytes(b"broken")
    whole = cli(*EXACT, "--json", "--cache-dir", "whole").json
    made = []
    for index in (1, 2, 3):
        done = cli(*EXACT, "--shard", f"{index}/3", "--json")
        made.append(done.json)
        assert made[-1]["cache"].endswith(f".shard-{index}-of-3.h5")
    assert [line["rows"]["ok"] + line["rows"]["failed"] for line in made] == [6, 6, 6]
    assert [line["status"] for line in made] == ["ok", "incomplete", "ok"]
    (told,) = [line for line in done.err.splitlines() if line.startswith("shard 3 of 3; ")]
    assert cli("train", "small.yaml").status == 2
    merge = shlex.split(told.partition(": ")[2])
    assert merge[:3] == ["spptransfer", "cache", "merge"]
    merged = cli(*merge[1:], "--json")
    assert merged.status == 0
    assert same_rows(whole["cache"], merged.json["cache"])
    assert FeatureCache.open(merged.json["cache"]).failures.keys() == {"cat/000.png"}
    again = cli(*EXACT, "--json")
    assert again.json["cache"] == merged.json["cache"]
    assert again.json["rows"] == {"ok": 17, "failed": 1, "reused": 17}


def test_a_shard_that_is_there_is_only_brought_up_to_date(cli, project):
    assert cli(*EXACT, "--shard", "2/3", "--json").json["rows"]["reused"] == 0
    assert cli(*EXACT, "--shard", "2/3", "--json").json["rows"]["reused"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "0"], "'--shards': "),
        (["--shards", "two"], "--shards"),
        (["--shard", "9/8"], "--shard: '9/8' must be I/N with I from 1 to N, as 2/8"),
        (["--shard", "0/8"], "--shard: '0/8' must be I/N"),
        (["--shard", "x"], "--shard: 'x' must be I/N"),
        (["--shards", "2", "--shard", "1/2"], "give one of both"),
        (["--scheduler", "tcp://127.0.0.1:9"], "--scheduler ADDRESS needs --shards N"),
        (["--shard", "1/2", "--scheduler", "a"], "--scheduler ADDRESS needs --shards N"),
        (["--shards", "19"], "shards: 19 are more than the 18 images; allowed: 1 to 18"),
        (["--shard", "1/19"], "shards: 19 are more than the 18 images; allowed: 1 to 18"),
        (["--read-processes", "-1"], "--read-processes"),
    ],
)
def test_a_division_that_cannot_be_gets_one_line(cli, project, options, message):
    refused = cli(*EXACT, *options, "--json")
    assert refused.status == 2
    assert message in refused.complaint
    assert refused.json["status"] == "error"
    assert not (project / "cache").exists()


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_one_clear_line(cli, project):
    pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    refused = cli(*EXACT, "--shards", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert refused.status == 2
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:1'" in refused.complaint
