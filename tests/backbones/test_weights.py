from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer import backbones
from spptransfer.backbones import BackboneRef, WeightsSource, weights
from spptransfer.errors import ConfigError, WeightsError

CONTENT = b"weights " * 300_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def toy(url, sha256=SHA256[:8]):
    return WeightsSource("toy-weights.pth", sha256, "MIT", url)


@pytest.fixture
def catalogued(monkeypatch):
    """Give AlexNet a file of official weights more."""

    def add(source):
        monkeypatch.setitem(backbones.describe("alexnet").weights, "toy", source)

    return add


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def settled(path, content=CONTENT, age=60):
    """Write a file that was last changed a while ago."""
    path.write_bytes(content)
    moment = time.time() - age
    os.utime(path, (moment, moment))
    return path


def reference(weights, weights_dir=None, name="alexnet"):
    return BackboneRef(name, weights, weights_dir)


# --- what weights are called ------------------------------------------------------------------


def test_official_weights_lie_in_the_chosen_folder_or_that_of_the_environment(
    tmp_path, monkeypatch
):
    assert reference("imagenet", tmp_path, "vgg16").path() == tmp_path / "vgg16-397923af.pth"
    monkeypatch.setenv("SPPTRANSFER_WEIGHTS", str(tmp_path / "chosen"))
    assert reference("imagenet").path().parent == tmp_path / "chosen"
    monkeypatch.delenv("SPPTRANSFER_WEIGHTS")
    assert reference("imagenet").path().parts[-3:-1] == ("spptransfer", "weights")


@pytest.mark.parametrize("name", ["own.pth", "own.safetensors", "sub/dir.x/own.pth"])
def test_a_path_is_any_text_with_a_known_suffix(name):
    assert reference(name).path() == reference(Path(name)).path() == Path(name)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reference("~/own.pth").path() == tmp_path / "own.pth"


@pytest.mark.parametrize("name", ["absent.pth", "~nobody-of-that-name/own.pth", "x" * 300 + ".pth"])
def test_an_absent_file_is_one_clear_line(name):
    with pytest.raises(WeightsError, match="no weights file at") as caught:
        reference(name).ensure_downloaded()
    assert Path(name).name in one_line(caught)


def test_unknown_weights_are_named_with_what_is_allowed():
    with pytest.raises(ConfigError, match="unknown weights 'imagnet' of backbone 'resnet50'") as e:
        reference("imagnet", name="resnet50").path()
    message = one_line(e)
    assert "did you mean 'imagenet'?" in message
    assert "imagenet-v2, random, or the path of a .safetensors or .pth file" in message
    with pytest.raises(ConfigError, match=r"of backbone 'zf5': .*allowed: random, or the path"):
        reference("imagenet", name="zf5").ensure_downloaded()


@given(st.integers(min_value=0, max_value=10**18 - 1))
def test_any_whole_number_of_up_to_18_digits_is_a_seed(seed):
    assert weights.random_seed(f"random:{seed}") == seed


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", "9" * 19, "9" * 5000])
def test_any_other_seed_is_refused(text):
    with pytest.raises(ConfigError, match="whole number of at least 0 and of at most 18 digits"):
        reference(f"random:{text}").path()


def test_weights_shipped_in_the_package_lie_beside_the_code(catalogued):
    catalogued(toy(None))
    assert reference("toy").path().parent == Path(weights.__file__).parent
    with pytest.raises(WeightsError, match=r"no weights file at .*; install the package again"):
        reference("toy").ensure_downloaded()


def test_random_weights_have_no_file():
    assert reference("random:3").path() is None
    with pytest.raises(ConfigError, match="have no file"):
        reference("random:3").ensure_downloaded()


@pytest.mark.parametrize("given", [None, 7, ["imagenet"]])
def test_weights_that_are_neither_a_name_nor_a_path_are_refused(given):
    with pytest.raises(ConfigError, match="must be a name of the catalogue, random:SEED or"):
        reference(given)


@pytest.mark.parametrize("text", ["imagenet", "random:3", "own.pth"])
def test_a_reference_travels_by_pickle(text, tmp_path):
    sent = BackboneRef("alexnet", text, tmp_path, tmp_path / "hashes")
    again = pickle.loads(pickle.dumps(sent))
    assert again == sent
    assert again.info is backbones.describe("alexnet")


# --- fetching ---------------------------------------------------------------------------------


def test_official_weights_are_fetched_once_and_logged(server, catalogued, tmp_path, caplog, capsys):
    (server.folder / "toy-weights.pth").write_bytes(CONTENT)
    catalogued(toy(f"{server.url}/toy-weights.pth"))
    folder = tmp_path / "not" / "there yet"
    with caplog.at_level(logging.INFO):
        path = reference("toy", folder).ensure_downloaded()
    assert path.read_bytes() == CONTENT
    assert [item.name for item in folder.iterdir()] == ["toy-weights.pth"]
    assert "fetching http" in caplog.text
    assert capsys.readouterr().out == ""
    (server.folder / "toy-weights.pth").unlink()
    assert reference("toy", folder).ensure_downloaded() == path


def test_another_file_than_the_official_one_is_not_kept(server, catalogued, tmp_path):
    (server.folder / "toy-weights.pth").write_bytes(CONTENT)
    catalogued(toy(f"{server.url}/toy-weights.pth", "00000000"))
    with pytest.raises(WeightsError) as caught:
        reference("toy", tmp_path / "kept").ensure_downloaded()
    assert f"{server.url}/toy-weights.pth" in one_line(caught)
    assert f"starts with {SHA256[:8]} instead of 00000000" in one_line(caught)
    assert list((tmp_path / "kept").iterdir()) == []


def test_offline_the_message_says_which_file_to_put_where(catalogued, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    url = "http://127.0.0.1:1/toy-weights.pth"
    catalogued(toy(url))
    with pytest.raises(
        WeightsError, match=r"cannot fetch toy-weights\.pth: http.* refused\); put "
    ) as caught:
        reference("toy", tmp_path).ensure_downloaded()
    target = tmp_path / "toy-weights.pth"
    assert f"put {url} at '{target}' or pass features.weights=PATH" in one_line(caught)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot fetch"):
        reference("toy", tmp_path / "file" / "folder").ensure_downloaded()
    settled(target)  # put there by hand
    assert reference("toy", tmp_path).weights_sha256() == SHA256


# --- identity ---------------------------------------------------------------------------------


def test_weights_are_identified_by_content_not_by_name_and_need_not_be_readable(tmp_path):
    one, other = settled(tmp_path / "one.pth"), settled(tmp_path / "other.pth", CONTENT + b"!")
    copy = settled(tmp_path / "copy.pth")
    assert reference(one).weights_sha256() == reference(copy).weights_sha256() == SHA256
    assert reference(other).weights_sha256() != SHA256


def test_an_official_file_with_another_hash_is_refused(catalogued, tmp_path):
    catalogued(toy("http://127.0.0.1:1/toy-weights.pth", "00000000"))
    settled(tmp_path / "toy-weights.pth")
    with pytest.raises(WeightsError, match="damaged or not the official file") as caught:
        reference("toy", tmp_path).weights_sha256()
    assert f"starts with {SHA256[:8]} instead of 00000000; delete it" in one_line(caught)


def remembered(folder):
    return list(json.loads((folder / "weights-sha256.json").read_text()).values())


def test_an_unchanged_file_is_read_once(tmp_path):
    path, folder = settled(tmp_path / "own.pth"), tmp_path / "hashes" / "folder"
    assert weights.sha256_of(path, folder) == SHA256
    assert not folder.parent.exists()  # to ask leaves nothing behind
    folder.mkdir(parents=True)
    assert weights.sha256_of(path, folder) == SHA256
    assert remembered(folder) == [SHA256]
    # Whoever forges what is remembered sees that it is believed, by any spelling of the path.
    text = (folder / "weights-sha256.json").read_text().replace(SHA256, "forged")
    (folder / "weights-sha256.json").write_text(text)
    assert weights.sha256_of(path, folder) == "forged"
    assert weights.sha256_of(tmp_path / "hashes" / ".." / "own.pth", folder) == "forged"


@pytest.mark.parametrize(("content", "age"), [(CONTENT[::-1], 30), (CONTENT + b"!", 60)])
def test_a_changed_file_is_read_again(content, age, tmp_path):
    path = settled(tmp_path / "own.pth")
    assert weights.sha256_of(path, tmp_path) == SHA256
    settled(path, content, age)
    assert weights.sha256_of(path, tmp_path) == hashlib.sha256(content).hexdigest()


def test_a_file_that_may_still_be_changing_is_not_remembered(tmp_path):
    path = settled(tmp_path / "own.pth", age=0)
    moment = path.stat().st_mtime_ns
    assert weights.sha256_of(path, tmp_path) == SHA256
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(moment, moment))
    assert weights.sha256_of(path, tmp_path) == hashlib.sha256(CONTENT[::-1]).hexdigest()


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", "null", '{"x": 3}', "\x00"])
def test_a_damaged_memory_only_costs_time(damage, tmp_path):
    path = settled(tmp_path / "own.pth")
    (tmp_path / "weights-sha256.json").write_text(damage)
    assert weights.sha256_of(path, tmp_path) == SHA256
    assert weights.sha256_of(path, tmp_path) == SHA256


def test_what_is_remembered_that_cannot_be_written_only_costs_time(tmp_path):
    path = settled(tmp_path / "own.pth")
    (tmp_path / "file").write_text("in the way")
    assert weights.sha256_of(path, tmp_path / "file") == SHA256


def test_the_hashes_of_several_files_are_remembered(tmp_path):
    paths = [settled(tmp_path / f"{i}.pth", bytes([i])) for i in range(4)]
    found = [BackboneRef("alexnet", path, None, tmp_path).weights_sha256() for path in paths]
    assert remembered(tmp_path) == found
    assert found == [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)]


def test_an_unreadable_file_is_one_clear_line(tmp_path):
    for path, said in ((tmp_path / "absent.pth", "No such file"), (tmp_path, "")):
        with pytest.raises(WeightsError, match=f"cannot be read: {said}"):
            weights.sha256_of(path)
