from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from conftest import python
from small_projects import values

from spptransfer.cli import main

COMMANDS = (
    *("run", "init", "extract", "train", "predict", "report", "compare", "proposals", "detect"),
    *("backbones", "datasets", "pretrain", "evaluate-backbone", "cache"),
)
CACHE_COMMANDS = ("list", "info", "verify", "export", "prune", "merge")


def test_neither_training_from_a_cache_nor_finding_it_up_to_date_needs_torch(finished):
    code = (
        f"import os, sys; os.chdir({str(finished)!r}); from spptransfer.cli import main; "
        "print(main(['extract', 'small.yaml', '--quiet']), 'torch' in sys.modules); "
        "print(main(['train', 'small.yaml', '--quiet', '--runs-dir', 'more']), "
        "'torch' in sys.modules)"
    )
    assert python(code).split() == ["0", "False"] * 2


def test_an_extraction_needs_no_scikit_learn(project):
    layers = [{"label": name, "set": {"features.layer": name}} for name in ("conv4", "spp")]
    grid = {"grid": {"rows": [{"label": "whole", "set": {}}], "columns": layers}}
    (project / "grid.yaml").write_text(yaml.safe_dump(values(project / "photos") | grid))
    code = (
        "import sys; from spptransfer.cli import main; "
        "print(*(main(['extract', path, '--quiet']) for path in ('small.yaml', 'grid.yaml')), "
        "{'sklearn', 'scipy', 'pandas'} & set(sys.modules))"
    )
    assert python(code).strip() == "0 0 set()"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_help_lists_all_commands_each_on_one_line(cli, arguments):
    done = cli(*arguments)
    assert (done.status, done.err) == (0, "")
    for command in COMMANDS:
        (line,) = [line for line in done.out.splitlines() if line.startswith(f"  {command} ")]
        assert line.endswith(".")
        assert not line.endswith("...")


@pytest.mark.parametrize("arguments", [["cache"], ["cache", "--help"]])
def test_the_help_of_cache_lists_its_commands(cli, arguments):
    done = cli(*arguments)
    assert done.status == 0
    for command in CACHE_COMMANDS:
        assert f"  {command} " in done.out


@pytest.mark.parametrize(
    "command", [*((name,) for name in COMMANDS), *(("cache", name) for name in CACHE_COMMANDS)]
)
def test_every_command_has_help_and_every_option_says_what_it_is(cli, command):
    done = cli(*command, "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: spptransfer {' '.join(command)}")
    options = [line for line in done.out.splitlines() if line.startswith(("  --", "  -h, --"))]
    assert len(options) >= 1
    if command != ("cache",):
        assert any("--json" in line for line in options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'? allowed: run, init, extract"),
        (["cache", "lst"], "unknown command 'lst'; did you mean 'list'? allowed: list, info"),
        (["--verson"], "--verson"),
        (["extract"], "PIPELINE"),
        (["run", "--jsn", "a.yaml"], "--jsn"),
        (["run", "a.yaml", "b.yaml"], "b.yaml"),
        (["run", "a.yaml", "--device"], "--device"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(cli, arguments, message):
    refused = cli(*arguments)
    assert (refused.status, refused.out) == (2, "")
    assert len(refused.err.splitlines()) == 1
    assert message in refused.complaint


def test_a_bug_is_no_mistake_of_the_user_and_keeps_its_traceback(monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("spptransfer.datasets.status", fail)
    with pytest.raises(ZeroDivisionError):
        main(["datasets"])


def test_an_interrupt_is_told_with_its_status(cli, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("spptransfer.datasets.status", interrupt)
    done = cli("datasets", "--json")
    assert done.status == 130
    assert done.complaint == "spptransfer: interrupted; everything finished so far is kept"
    assert done.json["status"] == "interrupted"


@pytest.mark.parametrize("module", ["spptransfer.cli", "typer", "spptransfer.cli.process"])
def test_an_interrupt_during_the_first_imports_is_one_line_with_its_status(module):
    code = f"""
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from spptransfer.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "spptransfer: interrupted before anything was begun\n"


def test_a_stream_that_cannot_show_a_name_does_not_end_the_command(tmp_path):
    (tmp_path / "ç.yaml").write_text(
        "dataset: {name: folder, root: 日本}\nprotocol: {name: folder}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "spptransfer", "run", "ç.yaml"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 2
    assert b"\\u65e5\\u672c" in done.stderr
    assert b"Traceback" not in done.stderr
