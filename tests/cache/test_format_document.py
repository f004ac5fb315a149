"""What docs/cache-format.md says of a file is true of one."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import h5py
import numpy as np
from cache_files import make_cache, make_spec

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cache-format.md").read_text()


def test_the_checksum_code_of_the_page_gives_the_stored_checksums(tmp_path):
    layers = {"layers": ("spp", "fc6"), "vectors": ("fc6",)}
    make_cache(
        tmp_path / "a.h5", 6, make_spec(**layers, scales=(48, 64), levels=(4, 3)), failed=[2]
    )
    (code,) = re.findall(r"(def row_checksum.*?)\n\n\ndef", PAGE, re.DOTALL)
    names = {"hashlib": hashlib}
    exec(code, names)
    blocks = [f"features/fc6/scale_{s}/vector" for s in (48, 64)]
    blocks += [f"features/spp/scale_{s}/level_{n}" for s in (48, 64) for n in (4, 3)]
    with h5py.File(tmp_path / "a.h5") as file:
        for i in range(6):
            assert names["row_checksum"](file, i, blocks) == file["rows/checksum"][i].tobytes()


def test_every_dataset_and_attribute_is_on_the_page(tmp_path):
    make_cache(tmp_path / "a.h5", failed=[1])
    with h5py.File(tmp_path / "a.h5") as file:
        found = []
        file.visititems(lambda name, node: found.append(name) if hasattr(node, "shape") else None)
        attributes = list(file.attrs)
    for name in [name for name in found if not name.startswith("features/")] + attributes:
        assert f"`{name}`" in PAGE


def test_the_order_of_the_numbers_is_the_one_on_the_page(tmp_path):
    _, features = make_cache(tmp_path / "a.h5", 2)
    with h5py.File(tmp_path / "a.h5") as file:
        row = file["features/spp/scale_64/level_4"][1]
    maps = next(iter(features.values()))[1].reshape(3, 4, 4)
    c, r, k = np.mgrid[0:3, 0:4, 0:4]
    np.testing.assert_array_equal(row[(c * 16 + r * 4 + k).ravel()], maps.ravel())


def test_the_fingerprint_is_made_as_the_page_says(tmp_path):
    make_cache(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        spec, fingerprint = json.loads(file.attrs["spec"]), file.attrs["fingerprint"]
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == fingerprint


def test_the_seal_is_made_as_the_page_says(tmp_path):
    make_cache(tmp_path / "a.h5")
    content = (tmp_path / "a.h5").read_bytes()
    (code,) = re.findall(r"(def is_whole.*?)```", PAGE, re.DOTALL)
    names = {"hashlib": hashlib}
    exec(code, names)
    assert names["is_whole"](content)
    for damaged in (content[:-1], content[:5000] + b"!" + content[5001:]):
        assert not names["is_whole"](damaged)


def test_the_code_of_the_page_reads_a_cache(tmp_path, monkeypatch):
    rows, features = make_cache(
        tmp_path / "cache" / "caltech101.h5", 6, make_spec(scales=(224,), levels=(6,)), failed=[2]
    )
    (code,) = re.findall(r"```python\n(import h5py.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["ids"] == rows.ids
    assert names["ok"].tolist() == [i != 2 for i in range(6)]
    np.testing.assert_array_equal(names["X"], next(iter(features.values())))
