"""Files made by chance or by somebody else: one clear line, no reading outside, no great memory."""

from __future__ import annotations

import hashlib
import json

import h5py
import numpy as np
import pytest
from cache_files import make_cache, make_spec
from conftest import python

from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.errors import CacheError

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
        cache.ids, cache.failures, cache.rows_at(slice(None)), cache.digests(), repr(cache)
        cache.matrix(), cache.labels(), cache.view()[:3]
    except SPPTransferError as error:
        assert "\\n" not in str(error), str(error)
        refused += 1
print(refused)
"""


def test_a_file_fuzzed_in_any_way_is_found_damaged_and_crashes_nothing(tmp_path):
    make_cache(tmp_path / "a.h5", 12, failed=[3])
    assert int(python(FUZZ, tmp_path / "a.h5", tmp_path, 200)) > 20


def forge(path, change, version=4) -> None:
    """Change a file with h5py and seal it again, as somebody who means harm would."""
    with h5py.File(path, "r+", locking=False) as file:
        change(file)
    content = path.read_bytes()
    head = len(content) if version == 4 else 0
    digest = hashlib.sha256(content[4096:head]).hexdigest()
    line = f"spptransfer-features {version} {len(content)} {head} {digest}\n"
    path.write_bytes(line.encode().ljust(4096, b"\0") + content[4096:])


def replaced(name, **given):
    """Put another dataset in the place of one."""

    def change(file):
        values = file[name][:]
        del file[name]
        file.create_dataset(name, **({"data": values} | given))

    return change


def linked(name, link):
    def change(file):
        del file[name]
        file[name] = link

    return change


def with_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def virtual(file):
    layout = h5py.VirtualLayout((12,), "<i4")
    layout[:] = h5py.VirtualSource("secret.h5", "secret", (12,))
    del file["rows/height"]
    file.create_virtual_dataset("rows/height", layout)


def external(file):
    del file["rows/height"]
    file.create_dataset("rows/height", (12,), "<i4", external=[("secret.h5", 0, 48)])


SPEC_LIKE = json.dumps(make_spec().to_dict())
FEATURES = "features/spp/scale_64/level_4"
FORGED = {
    "a soft link": linked("rows/height", h5py.SoftLink("/rows/width")),
    "an external link": linked("rows/height", h5py.ExternalLink("secret.h5", "/secret")),
    "an external link to a group": linked("rows", h5py.ExternalLink("secret.h5", "/")),
    "a virtual dataset": virtual,
    "numbers in another file": external,
    "chunks": replaced("rows/height", chunks=(4,)),
    "a filter": replaced("rows/height", chunks=(4,), compression="gzip"),
    "another type": replaced("rows/height", dtype="<f4"),
    "another byte order": replaced(FEATURES, dtype=">f4"),
    "texts of any length": replaced("rows/id", dtype=h5py.string_dtype()),
    "another shape": lambda file: replaced("rows/height", data=np.zeros((12, 1), "<i4"))(file),
    "too few rows": lambda file: replaced("rows/width", data=np.zeros(11, "<i4"))(file),
    "a vast number of rows": lambda file: replaced(
        "rows/id", data=None, shape=(1 << 40,), dtype="S10", chunks=(1 << 20,)
    )(file),
    "too many targets": lambda file: replaced("labels/targets", data=np.zeros(13, "<i4"))(file),
    "a dataset too few": lambda file: file.__delitem__("rows/stamp"),
    "a dataset too many": lambda file: file.__setitem__("rows/more", 1),
    "a group in its place": lambda file: (
        file.__delitem__("rows/status"),
        file.create_group("rows/status"),
    ),
    "no rows": lambda file: file.__delitem__("rows"),
    "no spec": lambda file: file.attrs.__delitem__("spec"),
    "a spec that is none": with_attribute("spec", "[1]"),
    "a spec of numbers": with_attribute("spec", np.zeros(4)),
    "a deep spec": with_attribute("spec", "[" * 20_000),
    "a spec of vast levels": with_attribute("spec", SPEC_LIKE.replace("[4]", "[400000]")),
    "another fingerprint": with_attribute("fingerprint", "0" * 64),
    "vast channels": with_attribute("channels", [1 << 62]),
    "channels of no layer": with_attribute("channels", [3, 3]),
    "one number of channels": with_attribute("channels", 3),
    "channels that are no number": with_attribute("channels", "three"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_sealed_file_with_what_no_cache_has_is_refused(tmp_path, what):
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.arange(12, dtype="<i4")
    make_cache(path, 12, failed=[3])
    forge(path, lambda file: None)
    assert len(FeatureCache.open(path)) == 11  # the forging itself is not what is refused
    forge(path, FORGED[what])
    for read in (FeatureCache.open, verify):
        with pytest.raises(CacheError, match=r"a\.h5' is damaged: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_an_hdf5_file_of_another_program_is_not_opened(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rows"] = h5py.ExternalLink("secret.h5", "/features")
        file.create_dataset("outside", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    with pytest.raises(CacheError, match="HDF5 file of another program"):
        FeatureCache.open(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"scale,level\n" * 1000, "it is another kind of file"),
        (b"spptransfer-features 2 123 " + b"0" * 64 + b"\n", "version 2; this release reads 4"),
        (b"spptransfer-features 4 1 1 1\n", "its first page is not what was written"),
    ],
)
def test_what_is_no_cache_is_one_line_that_says_what_it_is(tmp_path, content, message):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(CacheError, match=message):
        FeatureCache.open(tmp_path / "a.h5")


@pytest.mark.parametrize("kind", ["loop", "folder", "gone"])
def test_what_is_no_file_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "a.h5"
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(CacheError, match="cannot open the cache") as caught:
        FeatureCache.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [-1, -5000, 1, 5000])
def test_a_file_that_is_cut_or_added_to_says_so(tmp_path, change):
    path = tmp_path / "a.h5"
    make_cache(path)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(CacheError, match=r"it is truncated or was added to .*; copy it anew"):
        FeatureCache.open(path)
