from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from cache_files import make_cache, make_ids, make_spec
from small_projects import draw_image

from spptransfer.cache import FeatureCache


@pytest.fixture
def cache(cli, project) -> Path:
    return Path(cli("extract", "small.yaml", "--json").json["cache"])


@pytest.fixture
def made(project) -> Path:
    """A cache of the current folder that no pipeline made."""
    make_cache(project / "made.h5", 10, make_spec(levels=(3,)), failed=(2, 5))
    return Path("made.h5")


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    position = len(data) * 3 // 4
    data[position] ^= 0xFF
    path.write_bytes(data)


def test_list_shows_caches_their_rows_and_whether_they_are_complete(cli, made):
    Path("notes.txt").write_text("no cache")
    Path("cut.h5").write_bytes(made.read_bytes()[:-100])
    done = cli("cache", "list", "--cache-dir", ".")
    header, cut, line = done.out.splitlines()
    assert header.split() == ["cache", "rows", "failed", "size", "state", "features"]
    for words in ("made.h5", " 8 ", " 2 ", "complete", "made up: squeezenet1_1 spp, scales [64],"):
        assert words in line
    assert " damaged " in cut
    _, entry = cli("cache", "list", "--json", "--cache-dir", ".").json["caches"]
    assert (entry["rows"], entry["failed"], entry["state"]) == (8, 2, "complete")


def test_info_shows_the_spec_and_the_failures(cli, project):
    spec = make_spec(layers=("spp", "fc6"), vectors=("fc6",))
    make_cache(project / "made.h5", 10, spec, failed=(2, 5))
    done = cli("cache", "info", "made.h5")
    assert done.status == 0
    for words in ("fingerprint: ", "backbone: squeezenet1_1", "scales: [64]", "8 with features"):
        assert words in done.out
    assert "layers: fc6 + spp\n" in done.out
    assert f"failed: {make_ids(10)[2]}: reason 2" in done.out
    line = cli("cache", "info", "made.h5", "--json").json
    assert line["spec"]["layers"] == ["fc6", "spp"]
    assert len(line["failures"]) == 2


def test_verify_finds_nothing_wrong_with_a_sound_cache(cli, project, cache):
    assert cli("cache", "verify", cache).status == 0
    done = cli("cache", "verify", cache, "--pipeline", "small.yaml", "--json")
    assert done.status == 0
    assert (done.json["status"], done.json["problems"]) == ("ok", [])


def test_verify_finds_a_flipped_byte_and_repair_brings_the_row_back(cli, project, cache):
    whole = FeatureCache.open(cache).matrix()
    flip_a_byte(cache)
    found = cli("cache", "verify", cache)
    assert found.status == 1
    assert "problem" in found.out
    repaired = cli("cache", "verify", cache, "--pipeline", "small.yaml", "--repair", "--json")
    assert repaired.status == 0
    assert repaired.json["repaired"] is True
    assert len(repaired.json["problems"]) >= 1
    assert cli("cache", "verify", cache).status == 0
    again = FeatureCache.open(cache).matrix()
    np.testing.assert_allclose(again, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


def test_verify_with_a_pipeline_finds_changed_and_missing_images(cli, project, cache):
    draw_image(project / "photos" / "bee" / "000.png", 2, 77)
    (project / "photos" / "cat" / "000.png").unlink()
    done = cli("cache", "verify", cache, "--pipeline", "small.yaml", "--quiet")
    assert done.status == 1
    assert "bee/000.png" in done.err
    assert "cat/000.png" in done.err


def test_export_writes_chosen_rows_and_levels(cli, made):
    opened = FeatureCache.open(made)
    chosen = [opened.ids[4], opened.ids[1]]
    Path("ids.txt").write_text("\n".join(chosen))
    done = cli("cache", "export", made, "out.npz", "--ids", "ids.txt", "--levels", "1")
    assert (done.status, done.out) == (0, "2 rows: out.npz\n")
    with np.load("out.npz") as data:
        assert list(data["ids"]) == chosen
        np.testing.assert_array_equal(data["features"], opened.matrix(chosen, levels=[1]))


def test_export_finds_ids_however_their_file_and_their_names_are_encoded(cli, project):
    make_cache(project / "a.h5", ids=["\udcff.jpg", "ü.jpg", "a\u2028b.jpg"])
    (project / "ids.txt").write_bytes(b"\xef\xbb\xbf\xff.jpg\r\n\r\na\xe2\x80\xa8b.jpg\r\n")
    assert cli("cache", "export", "a.h5", "out.npz", "--ids", "ids.txt").status == 0
    with np.load("out.npz") as data:
        assert data["ids"].tolist() == ["\udcff.jpg", "a\u2028b.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.foo"], "must end in one of .npz, .csv, .parquet"),
        (["out.npz", "--levels", "six"], "--levels: 'six' must be numbers"),
        (["out.npz", "--levels", "2"], "level 2 does not follow from the stored levels [3]"),
        (["out.npz", "--scales", "99"], "scale 99 is not stored; allowed: [64]"),
        (["out.npz", "--combine", "sum"], "sum"),
        (
            ["out.npz", "--ids", "nowhere.txt"],
            "spptransfer: cannot read the ids in 'nowhere.txt': No such file or directory",
        ),
        (["out.npz", "--ids", "strange.txt"], "no such image"),
    ],
)
def test_an_export_that_cannot_be_gets_one_line_and_leaves_no_file(
    cli, project, made, arguments, message
):
    (project / "strange.txt").write_text("no such image\n")
    refused = cli("cache", "export", made, *arguments)
    assert refused.status == 2
    assert message in refused.complaint
    assert not list(project.glob("out.*"))


def test_prune_only_tells_unless_it_is_told_to_delete(cli, project, cache):
    other = Path(
        cli("extract", "small.yaml", "--json", "--set", "features.scales=[80]").json["cache"]
    )
    assert cli("cache", "prune").out == "nothing to remove\n"
    told = cli("cache", "prune", "small.yaml")
    assert other.name in told.out
    assert cache.name not in told.out
    assert "--delete does so" in told.out
    assert other.exists()
    done = cli("cache", "prune", "small.yaml", "--delete", "--json")
    assert done.json["removed"] == [str(Path("cache") / other.name)]
    assert not other.exists()
    assert cache.exists()


def test_prune_keeps_the_cache_of_a_pipeline_file_with_replaced_values(cli, project, cache):
    replaced = ("--set", "features.scales=[80]")
    other = Path(cli("extract", "small.yaml", "--json", *replaced).json["cache"])
    done = cli("cache", "prune", "small.yaml", "--delete", "--json", *replaced)
    assert done.json["removed"] == [str(Path("cache") / cache.name)]
    assert other.exists()


def test_prune_refuses_replaced_values_of_no_file(cli, project, cache):
    refused = cli("cache", "prune", "--delete", "--set", "features.scales=[80]")
    assert refused.status == 2
    assert "--set needs a PIPELINE" in refused.complaint


def test_prune_keeps_the_caches_of_all_cells_of_a_grid(cli, project, cache):
    layers = [{"label": name, "set": {"features.layer": name}} for name in ("conv4", "conv5")]
    grid = {"rows": [{"label": "all", "set": {}}], "columns": layers}
    pipeline = yaml.safe_load((project / "small.yaml").read_text())
    (project / "grid.yaml").write_text(yaml.safe_dump(pipeline | {"grid": grid}))
    assert cli("extract", "grid.yaml").status == 0
    done = cli("cache", "prune", "grid.yaml", "--delete", "--json")
    assert done.json["removed"] == [str(Path("cache") / cache.name)]


def test_merge_refuses_what_does_not_fit(cli, project):
    make_cache(project / "a.h5", seed=1)
    make_cache(project / "b.h5", seed=2)
    make_cache(project / "c.h5", spec=make_spec(scales=(80,)))
    assert make_ids(10)[0] in cli("cache", "merge", "both.h5", "a.h5", "b.h5").complaint
    assert "scales" in cli("cache", "merge", "both.h5", "a.h5", "c.h5").complaint
    assert not (project / "both.h5").exists()


@pytest.mark.parametrize("command", ["info", "verify"])
def test_missing_foreign_and_truncated_files_get_one_line(cli, made, command):
    Path("foreign.h5").write_bytes(b"something else" * 100)
    Path("cut.h5").write_bytes(made.read_bytes()[:-100])
    for name in ("missing.h5", "foreign.h5", "cut.h5"):
        refused = cli("cache", command, name)
        assert refused.status in (1, 2)
        assert name in refused.out + refused.err
        assert "Traceback" not in refused.err
    if command == "info":  # nothing is said of rows that cannot be read
        assert "truncated" in refused.out
        assert "rows:" not in refused.out
        assert "computed by:" not in refused.out
