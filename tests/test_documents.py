"""The site of documents is whole, and what is written from the code is there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
NEEDED = ("sphinx", "numpydoc", "myst_nb", "pydata_sphinx_theme")


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name} is not installed (make docs installs it)")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", DOCS, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert built.returncode == 0, built.stderr
    assert "spptransfer cache merge" in (tmp_path / "commands.html").read_text(encoding="utf-8")


def test_the_tables_of_pipeline_files_hold_every_key_of_the_schema(generated):
    schema = json.loads((REPOSITORY / "pipelines" / "pipeline.schema.json").read_text())
    tables = generated.pipeline_keys()
    for section in schema["$defs"].values():
        for key in section["properties"]:
            assert f"| `{key}` |" in tables


def test_the_pages_of_commands_hold_every_command(generated):
    from spptransfer.cli import CACHE_COMMANDS, COMMANDS

    text = generated.commands()
    for _, short_help, *examples in (*COMMANDS, *CACHE_COMMANDS):
        assert short_help
        assert all(f"spptransfer {example}" in text for example in examples)


def test_the_pages_have_at_most_twelve_thousand_words_outside_code_blocks():
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    prose = [re.sub(r"^ *```.*?^ *```$", "", page, flags=re.M | re.S) for page in pages]
    assert sum(len(re.findall(r"\S*\w\S*", page)) for page in prose) <= 12_000
