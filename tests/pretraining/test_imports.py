"""Nobody pays for pre-training but those who pre-train."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import spptransfer

PACKAGE = Path(spptransfer.__file__).parent
# Parse, call, print: it is imported where the command runs.
COMMANDS = {"cli/pretraining.py"}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_pre_training_is_imported_by_its_commands_alone():
    importing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith("spptransfer.pretraining") for name in imported_names(path))
    }
    assert {name for name in importing if not name.startswith("pretraining/")} == COMMANDS


def test_the_command_line_loads_it_only_where_it_is_asked_for():
    code = (
        "import sys, spptransfer.cli, spptransfer.experiment, spptransfer.features;"
        "print([name for name in sys.modules if name.startswith('spptransfer.pretraining')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
