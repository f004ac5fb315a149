"""Proposals of many images come in their order, and from the cache where they are there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spptransfer.detection.methods import open_proposer
from spptransfer.detection.proposal_cache import ProposalCache, windows_of
from spptransfer.errors import CacheError, ConfigError, DatasetError

ROOT = Path(__file__).parent.parent.parent


@dataclass
class ByMean:
    """Proposes one window by the image's mean, the brighter the later, and counts its calls."""

    key: str = "by_mean"
    needs_maps: bool = False
    calls: list[float] = field(default_factory=list)

    name = "by_mean"
    needs_pixels = True

    def propose(self, image, maps=None, *, id=None):
        mean = float(image.mean())
        self.calls.append(mean)
        time.sleep((200 - mean) / 5000)
        return np.array([[0, 0, 1 + mean, 1]], np.float32)


def photos(folder, count=9):
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", (30 + number, 20), (number * 20,) * 3).save(paths[-1])
    return paths


def test_windows_come_in_order_and_once_computed_from_the_cache(tmp_path):
    paths, cache, proposer = photos(tmp_path), ProposalCache(tmp_path / "kept"), ByMean()
    first = list(windows_of(paths, proposer, cache, workers=4))
    assert [each[0, 2] for each in first] == [1 + 20 * number for number in range(9)]
    (tmp_path / "9.png").write_bytes(paths[3].read_bytes())  # the same content by another name
    again = list(windows_of([*paths, tmp_path / "9.png"], proposer, cache))
    assert np.array_equal(again[:9], first)
    assert np.array_equal(again[9], first[3])
    assert len(proposer.calls) == 9
    other = ByMean(key="by_mean version=2")
    assert np.array_equal(list(windows_of(paths, other, cache)), first)
    assert len(other.calls) == 9


def test_what_was_taken_before_a_stop_is_kept(tmp_path):
    paths, cache, proposer = photos(tmp_path), ProposalCache(tmp_path / "kept"), ByMean()
    begun = windows_of(paths, proposer, cache, workers=1)
    taken = [next(begun) for _ in range(4)]
    begun.close()
    before = len(proposer.calls)
    assert before < 9
    assert np.array_equal(list(windows_of(paths[:4], proposer, cache)), taken)
    assert len(proposer.calls) == before


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_entry_counts_as_absent(tmp_path, damage):
    paths, cache, proposer = photos(tmp_path, 1), ProposalCache(tmp_path / "kept"), ByMean()
    (first,) = windows_of(paths, proposer, cache)
    (entry,) = (tmp_path / "kept").rglob("*.npy")
    entry.write_bytes(entry.read_bytes()[:-1] if damage is None else damage)
    (second,) = windows_of(paths, proposer, cache)
    assert np.array_equal(first, second)
    assert np.array_equal(np.load(entry), first)


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from spptransfer.detection.proposal_cache import ProposalCache
cache = ProposalCache(Path(sys.argv[1]))
print("begun", flush=True)
while True:
    for number in range(20):
        cache.put("method", f"{number:064}", np.full((2000, 4), number, np.float32))
"""


def test_writers_side_by_side_that_are_killed_leave_whole_entries_only(tmp_path):
    cache, found = ProposalCache(tmp_path), 0
    for _ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
            )
            for _ in range(2)
        ]
        for writer in writers:
            writer.stdout.readline()
        time.sleep(0.1)
        for writer in writers:
            writer.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
            writer.communicate()
        list(windows_of([], ByMean(), cache))
        assert not list(tmp_path.rglob("*.tmp"))
        for number in range(20):
            windows = cache.get("method", f"{number:064}")
            if windows is not None:
                found += 1
                assert np.array_equal(windows, np.full((2000, 4), number))
    assert found


def test_images_that_cannot_be_read_have_no_windows(tmp_path):
    paths = photos(tmp_path, 2)
    paths[0].write_bytes(b"no image")
    for proposer in (ByMean(), open_proposer("grid")):
        found = list(windows_of([*paths, tmp_path / "absent.png"], proposer))
        assert [len(each) > 0 for each in found] == [False, True, False]


def test_a_grid_is_made_for_the_upright_size_and_not_kept(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    cache = ProposalCache(tmp_path / "kept")
    (windows,) = windows_of([tmp_path / "turned.jpg"], open_proposer("grid"), cache)
    assert windows[0].tolist() == [0, 0, 30, 40]
    assert not (tmp_path / "kept").exists()


def test_a_file_that_lacks_images_is_refused_before_any_is_read(tmp_path):
    (tmp_path / "boxes.json").write_text('{"1.png": [[0, 0, 5, 5]]}')
    proposer = open_proposer("file", path=tmp_path / "boxes.json")
    with pytest.raises(DatasetError, match=r"says nothing of 2 of 3 images: 'a', 'b'$"):
        next(windows_of(["1.png", "a", "b"], proposer))
    (path,) = photos(tmp_path, 1)
    (windows,) = windows_of([path], proposer, ids=["1.png"])
    assert windows.tolist() == [[0, 0, 30, 20], [0, 0, 5, 5]]


def test_methods_that_need_maps_are_refused():
    with pytest.raises(ConfigError, match="by_mean needs the images' maps"):
        next(windows_of([], ByMean(needs_maps=True)))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(CacheError, match="kept"):
        list(windows_of(photos(tmp_path, 1), ByMean(), ProposalCache(tmp_path / "kept")))


def test_opencv_proposes_the_same_in_many_threads(tmp_path):
    for method in ("selective_search", "edge_boxes"):
        try:
            proposer = open_proposer(method)
        except ConfigError:
            pytest.skip("needs the extra 'proposals'")
        random, paths = np.random.default_rng(0), []
        for number in range(6):
            blocks = random.integers(0, 256, (8, 10, 3), dtype=np.uint8)
            paths.append(tmp_path / f"{number}.png")
            Image.fromarray(blocks.repeat(20, 0).repeat(20, 1)).save(paths[-1])
        alone = [proposer.propose(np.asarray(Image.open(path))) for path in paths]
        together = list(windows_of(paths * 3, proposer, workers=6))
        assert all(map(np.array_equal, together, alone * 3))
