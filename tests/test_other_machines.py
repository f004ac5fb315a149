"""The main jobs end well where what macOS and Windows lack is hidden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import other_machines
import pytest

SCRIPT = Path(other_machines.__file__)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system itself lacks it")
@pytest.mark.parametrize("job", ["demo", "resume", "fit"])
def test_a_job_ends_well_without_what_only_linux_has(job, tmp_path):
    command = [sys.executable, "-W", "default", str(SCRIPT), job, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
