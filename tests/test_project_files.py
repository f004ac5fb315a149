"""The files around the package say what they should."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["docs"]]
    names = {re.split(r"[\[<>=! ]", line)[0].lower().replace("_", "-") for line in wanted}
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    assert names <= {line.split("==")[0] for line in pins}


def test_the_oldest_allowed_releases_are_those_that_make_oldest_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = {line for lines in (project["dependencies"], *extras) for line in lines}
    bounds = {re.sub(r"\[.*\]", "", line).replace(">=", "==") for line in wanted if ">=" in line}
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = {line for line in lines if line and not line.startswith("#")}
    # Linters say other things in other releases, and older builds of torch lie elsewhere.
    apart = ("ruff", "mypy", "torch")
    assert {line for line in bounds if not line.startswith(apart)} == {
        line for line in pins if not line.startswith(apart)
    }


def test_every_relative_link_in_the_documentation_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^)#]+)[)#]", text) + re.findall(r'src="([^"]+)"', text)
        for target in targets:
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_change_log_knows_this_version():
    from spptransfer import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_python_files_stay_within_six_hundred_lines():
    paths = [path for path in tracked() if path.suffix == ".py"]
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {name: length for name, length in lengths.items() if length > 600}


def test_nothing_tracked_is_over_two_megabytes_or_a_photograph_but_embedded_weights():
    for path in tracked():
        most = 6e6 if path.suffix == ".safetensors" else 2 * 2**20
        assert path.stat().st_size < most, path
        assert path.suffix.lower() not in (".jpg", ".jpeg", ".pth", ".h5"), path
