"""Files made by chance or by somebody else: one clear line, no reading outside, no great memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_files import make_cache, make_spec

from spptransfer.cache import FeatureCache
from spptransfer.cache.layout import Extent, Header
from spptransfer.cache.verify import verify
from spptransfer.errors import CacheError, SPPTransferError

FUZZ = """
import resource, sys, random
from pathlib import Path
from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.errors import SPPTransferError

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
good, folder, count = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
chance = random.Random(5)
path = folder / "fuzzed.h5"
refused = 0
for _ in range(count):
    content = bytearray(good)
    for _ in range(chance.choice([1, 1, 3, 50])):
        kind, at = chance.random(), chance.randrange(len(content))
        if kind < 0.6:
            content[at] = chance.randrange(256)
        elif kind < 0.8:
            del content[at : at + chance.choice([1, 8, 512, 4096])]
        else:
            content[at:at] = chance.randbytes(chance.choice([1, 8, 512]))
        content = content or bytearray(1)
    path.write_bytes(content)
    try:
        assert content == good or verify(path)
        cache = FeatureCache.open(path)
        cache.ids, cache.failures, cache.rows, cache.digests(), repr(cache)
        cache.matrix(), cache.labels(), cache.view()[:3]
    except SPPTransferError as error:
        assert "\\n" not in str(error), str(error)
        refused += 1
print(refused)
"""


def test_a_file_fuzzed_in_any_way_is_found_damaged_and_crashes_nothing(tmp_path):
    make_cache(tmp_path / "a.h5", 12, failed=[3])
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path / "a.h5"), str(tmp_path), "300"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert int(done.stdout) > 20


def forge(path: Path, change) -> None:
    """Rewrite parts of the header with right checksums, as somebody who means harm would."""
    with open(path, "rb") as file:
        header = Header.read(file, path)
        file.seek(header.header_bytes)
        content = file.read()
    fields = json.loads(json.dumps(header, default=vars))
    change(fields)
    fields["extents"] = {name: Extent(**extent) for name, extent in fields["extents"].items()}
    path.write_bytes(Header(**fields).pack() + content)


FORGERY = [
    "rows/id",
    "rows/by_id",
    "rows/status",
    "rows/checksum",
    "failures/row",
    "failures/error",
    "labels/classes",
    "labels/targets",
    "features/scale_64/level_4",
]


@pytest.mark.parametrize("name", FORGERY)
@pytest.mark.parametrize("offset", [0, 1, 8192, 10_000])
def test_a_forged_place_of_numbers_gives_errors_of_ours_or_wrong_numbers_but_no_crash(
    tmp_path, name, offset
):
    path = tmp_path / "a.h5"
    make_cache(path, 12, failed=[3])
    forge(path, lambda fields: fields["extents"][name].update(offset=offset))
    try:
        cache = FeatureCache.open(path)
        _ = cache.failures, cache.ids, cache.rows
        cache.matrix(cache.ids[:2])
        cache.labels()
    except SPPTransferError:
        pass


def test_an_hdf5_file_with_external_links_is_not_followed(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.ones(5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rows"] = h5py.ExternalLink("secret.h5", "/features")
        file.create_dataset("huge", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))
        file.create_dataset("outside", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    with pytest.raises(CacheError, match="HDF5 file of another program"):
        FeatureCache.open(tmp_path / "a.h5")
    with pytest.raises(CacheError, match="HDF5 file of another program"):
        verify(tmp_path / "a.h5")


def test_hdf5_contents_that_differ_from_the_header_are_found_by_verifying(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path)
    forge(path, lambda fields: fields["attributes"].update(dataset="another"))
    assert ["differ" in problem.what for problem in verify(path)] == [True]


@pytest.mark.parametrize("kind", ["loop", "folder", "text"])
def test_what_is_no_file_of_ours_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "a.h5"
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("scale,level\n" * 1000)
    with pytest.raises(CacheError) as caught:
        FeatureCache.open(path)
    assert "\n" not in str(caught.value)


def test_a_vast_declared_matrix_is_refused_without_memory_for_it(tmp_path):
    path = tmp_path / "a.h5"
    spec = make_spec()
    make_cache(path, 12, spec)

    def enlarge(fields):
        for name, extent in fields["extents"].items():
            if name.startswith(("rows/", "features/", "labels/targets")):
                extent["shape"][0] = 1 << 40

    forge(path, enlarge)
    with pytest.raises(CacheError, match="reaches beyond"):
        FeatureCache.open(path)
