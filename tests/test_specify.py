from __future__ import annotations

import subprocess
import sys

from spptransfer.specify import feature_spec


def test_a_spec_is_equal_however_levels_and_scales_are_written():
    mini = {"backbone": "spp-mini", "weights": "embedded"}
    spec = feature_spec(**mini, levels=(6, 3, 2, 1), scales=(64, 96))
    same = feature_spec(**mini, levels=[1, 6], scales=[96, 64])
    assert spec == same
    assert spec.fingerprint == same.fingerprint


def test_auto_precision_is_float32():
    auto, single = (
        feature_spec(backbone="spp-mini", weights="embedded", precision=precision)
        for precision in ("auto", "float32")
    )
    assert auto == single


def test_making_a_spec_of_a_file_imports_no_torch(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"whatever")
    code = (
        "import sys; from spptransfer.specify import feature_spec; "
        f"feature_spec(backbone='alexnet', weights={str(tmp_path / 'a.pth')!r}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
