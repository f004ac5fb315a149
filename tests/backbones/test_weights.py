from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer import backbones
from spptransfer.backbones import BackboneRef, WeightsSource, weights
from spptransfer.errors import ConfigError, WeightsError

CONTENT = b"weights " * 300_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path.startswith("/short"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a server on loopback that offers one file of weights."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "toy-weights.pth").write_bytes(CONTENT)
    handler = partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


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


# --- what weights are called ------------------------------------------------------------------


def test_official_weights_lie_in_the_chosen_folder(tmp_path):
    path = weights.path_of("vgg16", "imagenet", tmp_path)
    assert path == tmp_path / "vgg16-397923af.pth"


def test_the_environment_chooses_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPPTRANSFER_WEIGHTS", str(tmp_path / "chosen"))
    assert weights.default_dir() == tmp_path / "chosen"
    assert weights.path_of("vgg16", "imagenet").parent == tmp_path / "chosen"


def test_the_default_folder_is_in_the_users_cache(monkeypatch):
    monkeypatch.delenv("SPPTRANSFER_WEIGHTS")
    assert weights.default_dir().parts[-2:] == ("spptransfer", "weights")


@pytest.mark.parametrize("name", ["own.pth", "own.safetensors", "sub/dir.x/own.pth"])
def test_a_path_is_any_text_with_a_known_suffix(name):
    assert weights.path_of("vgg16", name) == Path(name)
    assert weights.path_of("vgg16", Path(name)) == Path(name)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.path_of("vgg16", "~/own.pth") == tmp_path / "own.pth"


@pytest.mark.parametrize("name", ["~nobody-of-that-name/own.pth", "x" * 300 + ".pth"])
def test_a_path_that_no_file_can_have_is_an_absent_file(name):
    with pytest.raises(WeightsError, match="no weights file at"):
        weights.ensure_downloaded("vgg16", name)


def test_unknown_weights_are_named_with_what_is_allowed():
    with pytest.raises(ConfigError, match="unknown weights 'imagnet' of backbone 'resnet50'") as e:
        weights.path_of("resnet50", "imagnet")
    message = one_line(e)
    assert "did you mean 'imagenet'?" in message
    assert "imagenet-v2, random, or the path of a .safetensors or .pth file" in message


def test_the_papers_networks_have_local_or_random_weights_only():
    with pytest.raises(ConfigError, match=r"of backbone 'zf5': .*allowed: random, or the path"):
        weights.ensure_downloaded("zf5", "imagenet")


@given(st.integers(min_value=0, max_value=10**18 - 1))
def test_any_whole_number_of_up_to_18_digits_is_a_seed(seed):
    assert weights.random_seed(f"random:{seed}") == seed


@pytest.mark.parametrize("text", ["random:", "random:x", "random:-1", "random:1.5", "random:²"])
def test_a_bad_seed_is_refused(text):
    with pytest.raises(ConfigError, match="whole number of at least 0"):
        weights.random_seed(text)


@pytest.mark.parametrize("digits", [19, 5000])
def test_a_seed_that_torch_cannot_take_is_refused(digits):
    with pytest.raises(ConfigError, match="of at most 18 digits"):
        weights.random_seed(f"random:{'9' * digits}")


@pytest.mark.parametrize("text", ["imagenet", "randomly.pth", "x/random", "Random"])
def test_other_weights_have_no_seed(text):
    assert weights.random_seed(text) is None


# --- finding ----------------------------------------------------------------------------------


def test_a_local_file_is_found_where_it_is(tmp_path):
    path = settled(tmp_path / "own.pth")
    assert weights.ensure_downloaded("alexnet", str(path)) == path


def test_an_absent_local_file_is_one_clear_line(tmp_path):
    with pytest.raises(WeightsError, match="no weights file at") as caught:
        weights.ensure_downloaded("alexnet", tmp_path / "absent.pth")
    assert str(tmp_path / "absent.pth") in one_line(caught)


def test_weights_shipped_in_the_package_lie_beside_the_code(catalogued):
    catalogued(toy(None))
    assert weights.path_of("alexnet", "toy").parent == Path(weights.__file__).parent
    with pytest.raises(WeightsError, match="missing from the installed package"):
        weights.ensure_downloaded("alexnet", "toy")


def test_random_weights_have_no_file():
    with pytest.raises(ConfigError, match="have no file"):
        weights.ensure_downloaded("alexnet", "random:3")


# --- fetching ---------------------------------------------------------------------------------


def test_official_weights_are_fetched_once(server, catalogued, tmp_path):
    catalogued(toy(f"{server}/toy-weights.pth"))
    folder = tmp_path / "not" / "there yet"
    path = weights.ensure_downloaded("alexnet", "toy", folder)
    assert path.read_bytes() == CONTENT
    assert [item.name for item in folder.iterdir()] == ["toy-weights.pth"]
    (tmp_path / "served" / "toy-weights.pth").unlink()
    assert weights.ensure_downloaded("alexnet", "toy", folder) == path


def test_fetching_is_logged_and_not_printed(server, tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO):
        weights.fetch(toy(f"{server}/toy-weights.pth"), tmp_path / "copy.pth")
    assert "fetching http" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_whole_hash_is_checked_as_well_as_a_prefix(server, tmp_path):
    weights.fetch(toy(f"{server}/toy-weights.pth", SHA256), tmp_path / "copy.pth")
    assert (tmp_path / "copy.pth").exists()


def test_a_file_of_another_hash_is_not_kept(server, tmp_path):
    target = tmp_path / "kept" / "toy-weights.pth"
    with pytest.raises(WeightsError) as caught:
        weights.fetch(toy(f"{server}/toy-weights.pth", "00000000"), target)
    message = one_line(caught)
    assert f"starts with {SHA256[:8]} instead of 00000000" in message
    assert f"{server}/toy-weights.pth" in message
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("path", ["absent.pth", "short.pth"])
def test_what_does_not_arrive_whole_is_not_kept(server, path, tmp_path):
    target = tmp_path / "kept" / "toy-weights.pth"
    with pytest.raises(WeightsError) as caught:
        weights.fetch(toy(f"{server}/{path}"), target)
    assert f"{server}/{path}" in one_line(caught)
    assert list(target.parent.iterdir()) == []


def test_offline_the_message_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    url = "http://127.0.0.1:1/toy-weights.pth"
    target = tmp_path / "toy-weights.pth"
    with pytest.raises(
        WeightsError, match=r"cannot fetch toy-weights\.pth: http.* refused\); put "
    ) as caught:
        weights.fetch(toy(url), target)
    assert f"put {url} at '{target}' or pass features.weights=PATH" in one_line(caught)


def test_a_folder_that_cannot_be_made_is_one_clear_line(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot fetch"):
        weights.fetch(toy(f"{server}/toy-weights.pth"), tmp_path / "file" / "toy.pth")


# --- identity ---------------------------------------------------------------------------------


def test_weights_are_identified_by_content_not_by_name(tmp_path):
    one, other = settled(tmp_path / "one.pth"), settled(tmp_path / "other.pth", CONTENT + b"!")
    copy = settled(tmp_path / "copy.pth")
    assert (
        weights.weights_sha256("alexnet", one) == weights.weights_sha256("alexnet", copy) == SHA256
    )
    assert weights.weights_sha256("alexnet", other) != SHA256


def test_identity_needs_no_readable_weights(tmp_path):
    assert weights.weights_sha256("vgg16", settled(tmp_path / "no-network.pth", b"?"))


def test_an_official_file_with_another_hash_is_refused(catalogued, tmp_path):
    catalogued(toy("http://127.0.0.1:1/toy-weights.pth", "00000000"))
    settled(tmp_path / "toy-weights.pth")
    with pytest.raises(WeightsError, match="damaged or not the official file") as caught:
        weights.weights_sha256("alexnet", "toy", tmp_path)
    assert f"starts with {SHA256[:8]} instead of 00000000; delete it" in one_line(caught)


def test_an_official_file_may_be_put_there_by_hand(catalogued, tmp_path):
    catalogued(toy("http://127.0.0.1:1/toy-weights.pth"))
    settled(tmp_path / "toy-weights.pth")
    assert weights.weights_sha256("alexnet", "toy", tmp_path) == SHA256


def remembered(folder):
    return list(json.loads((folder / "weights-sha256.json").read_text()).values())


def test_an_unchanged_file_is_read_once(tmp_path):
    path, folder = settled(tmp_path / "own.pth"), tmp_path / "hashes" / "folder"
    assert weights.sha256_of(path, folder) == SHA256
    assert remembered(folder) == [SHA256]
    # Whoever forges what is remembered sees that it is believed, by any spelling of the path.
    text = (folder / "weights-sha256.json").read_text().replace(SHA256, "forged")
    (folder / "weights-sha256.json").write_text(text)
    assert weights.sha256_of(path, folder) == "forged"
    assert weights.sha256_of(tmp_path / "hashes" / ".." / "own.pth", folder) == "forged"


def test_without_what_is_remembered_nothing_is_written(tmp_path):
    path = settled(tmp_path / "own.pth")
    assert weights.sha256_of(path) == SHA256
    assert list(tmp_path.iterdir()) == [path]


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
    found = [weights.sha256_of(path, tmp_path) for path in paths]
    assert (
        remembered(tmp_path) == found == [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)]
    )


def test_an_unreadable_file_is_one_clear_line(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        weights.sha256_of(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="cannot be read: "):
        weights.sha256_of(tmp_path)


# --- references -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["imagenet", "random:3", "own.pth"])
def test_a_reference_is_small_and_travels_by_pickle(text, tmp_path):
    reference = BackboneRef("alexnet", text, tmp_path, tmp_path / "hashes")
    again = pickle.loads(pickle.dumps(reference))
    assert again == reference
    assert again.info is backbones.describe("alexnet")


def test_a_reference_knows_the_file_and_its_hash(tmp_path):
    path = settled(tmp_path / "own.pth")
    reference = BackboneRef("alexnet", path, hash_cache_dir=tmp_path)
    assert (reference.path(), reference.weights_sha256()) == (path, SHA256)
    assert remembered(tmp_path) == [SHA256]
    assert BackboneRef("alexnet", "random").path() is None
    with pytest.raises(ConfigError, match="unknown weights 'imagnet'"):
        BackboneRef("alexnet", "imagnet").path()


@pytest.mark.parametrize("given", [None, 7, ["imagenet"]])
def test_weights_that_are_neither_a_name_nor_a_path_are_refused(given):
    with pytest.raises(ConfigError, match="must be a name of the catalogue, random:SEED or"):
        BackboneRef("alexnet", given)
