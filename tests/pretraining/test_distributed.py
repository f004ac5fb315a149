"""Several processes that train one network."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
import yaml
from pretraining_cases import curve, pipeline, run_command, same_tensors, values

from spptransfer.errors import ConfigError
from spptransfer.pretraining.distributed import all_sums, process_group, rank, world_size
from spptransfer.pretraining.folder import CHECKPOINT, load_checkpoint
from spptransfer.pretraining.run import TrainingMachine, pretrain

# Processes are forked from one that has imported torch.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch.distributed", "spptransfer.pretraining.run"])
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Dropout is drawn by each process for itself.
SHRUNK = {
    "network": {"name": "zf5", "levels": [1], "dropout": 0.0},
    "images": {"resize": 36, "size": 35, "small": 31},
    "training": {"batch": 6, "learning_rate": 1e-3, "checkpoint_every": 100, "epochs": 1},
}


def command(root, folder, **sections):
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values(root, **sections)))
    arguments = ["pretrain", str(path), "--out", str(folder), "--device", "cpu"]
    return [*arguments, "--threads", "1", "--jobs", "0", "--quiet"]


def start_two(root, folder, **sections):
    """Two processes, told what a launcher tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    line, processes = command(root, folder, **sections), []
    for number in ("0", "1"):
        told = {**said, "RANK": number, "LOCAL_RANK": number}
        processes.append(FORKED.Process(target=run_command, args=(told, line)))
        processes[-1].start()
    return processes


def ends(processes):
    for process in processes:
        process.join(timeout=600)
    return [process.exitcode for process in processes]


def test_without_a_launcher_there_is_one_process():
    assert (rank(), world_size(), all_sums([1, 2.5])) == (0, 1, [1.0, 2.5])


def test_a_launcher_that_tells_no_number_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "a")
    with pytest.raises(ConfigError, match="WORLD_SIZE must be a number"):
        world_size()


@pytest.mark.parametrize(
    "said",
    [{}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}],
)
def test_a_launcher_that_does_not_say_where_to_meet_is_told(monkeypatch, said):
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", **said}.items():
        monkeypatch.setenv(key, value)
    message = "cannot connect 2 processes at MASTER_ADDR and MASTER_PORT"
    with pytest.raises(ConfigError, match=message), process_group(torch.device("cpu")):
        pass


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    line = [sys.executable, *LAUNCHER, "-m", "spptransfer", *command(photos, two, **SHRUNK)]
    with subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1"}) as launched:
        pretrain(pipeline(photos, **SHRUNK), TrainingMachine(one, device="cpu", threads=1, jobs=0))
    assert launched.returncode == 0
    lines = zip(curve(one), curve(two), strict=True)
    for alone, together in lines:
        assert together == pytest.approx(alone, rel=1e-4)
    states = [load_checkpoint(folder)["student"] for folder in (one, two)]
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], rtol=1e-3, atol=1e-5), key


@pytest.mark.slow
def test_processes_that_are_told_to_end_do_so_together_and_go_on_together(photos, tmp_path):
    """Batch norms included, whose statistics are each process's own on a CPU."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    training = {"epochs": 3}
    processes = start_two(photos, stopped, training=training)
    while processes[0].is_alive() and not (stopped / CHECKPOINT).exists():
        time.sleep(0.01)
    processes[1].terminate()  # one of them: all are to end after the same step
    assert ends(processes)[1] != 0
    assert len(curve(stopped)) < 3
    assert ends(start_two(photos, stopped, training=training)) == [0, 0]
    assert ends(start_two(photos, whole, training=training)) == [0, 0]
    assert curve(stopped) == curve(whole)
    states = [load_checkpoint(folder)["student"] for folder in (stopped, whole)]
    assert same_tensors(*states)


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_equally_is_refused(photos, tmp_path):
    assert 0 not in ends(start_two(photos, tmp_path / "run", training={"batch": 5}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
