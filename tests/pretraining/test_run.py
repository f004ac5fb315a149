"""Whole runs on a few small images."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import yaml
from pretraining_cases import curve, same_tensors, values
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from small_projects import draw_folder

from spptransfer import backbones, images
from spptransfer.backbones.loading import random_network
from spptransfer.errors import CacheError, ConfigError, ModelError, WeightsError
from spptransfer.files import exclusive_lock
from spptransfer.pretraining import folder as run_folder
from spptransfer.pretraining.config import NetworkSection, parse_pretraining
from spptransfer.pretraining.folder import CHECKPOINT, load_checkpoint, save_checkpoint
from spptransfer.pretraining.run import TrainingMachine, pretrain
from spptransfer.pretraining.student import build_student

DISTILL = {"backbone": "squeezenet1_1", "weights": "random:1", "scale": 33, "levels": [2, 1]}


def run(root, folder, *, steps=None, **sections):
    """A run; with `steps`, one that is stopped after so many."""
    machine = TrainingMachine(folder, device="cpu", jobs=0, threads=1)
    if steps is not None:
        machine.progress = stopping(machine.stop, steps)
    return pretrain(parse_pretraining(values(root, **sections)), machine)


def stopping(stop, steps):
    left = iter(range(steps, -1, -1))

    def progress(items, total, label):
        for item in items:
            if label.startswith("epoch") and next(left) <= 1:
                stop.set()
            yield item

    return progress


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run with a teacher that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(photos, folder, distill=DISTILL)
    return folder


def test_a_run_leaves_a_line_per_epoch_and_weights_that_load(whole):
    lines = curve(whole)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["size"] for line in lines] == [24, 32]
    assert all(0 <= line["val_top1"] <= line["val_top5"] <= 1 for line in lines)
    backbone = backbones.load("zf5-64", whole / "weights.safetensors")
    assert backbone(torch.zeros(1, 3, 48, 64)).shape == (1, 192, 6, 8)


def test_vector_layers_stand_on_the_pyramid_that_was_trained(whole):
    trained = build_student(NetworkSection(name="zf5-64", levels=(2, 1)), 3, None, 0).network
    trained.load_state_dict(load_file(whole / "weights.safetensors"), strict=False)
    backbone = backbones.load("zf5-64", whole / "weights.safetensors", layer="fc7")
    images = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        expected = trained.eval().head("fc7")(trained.trunk("spp")(images))
        assert torch.allclose(backbone(images), expected, rtol=1e-4, atol=1e-4)


def test_the_folder_says_what_was_made_and_how_well(whole, photos):
    with safe_open(whole / "weights.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["spptransfer"])
    last = curve(whole)[-1]
    assert (about["network"], about["levels"], about["epochs"]) == ("zf5-64", [2, 1], 2)
    assert about["accuracy"]["top1"] == last["val_top1"]
    assert about["classes"] == ["bee", "cat", "dog"]
    assert (about["data"]["name"], about["data"]["images"]) == ("photos", 21)
    assert about["teacher_sha256"] == backbones.load("squeezenet1_1", "random:1").weights_sha256
    card = (whole / "model-card.md").read_text()
    assert about["data"]["sha256"] in card
    assert str(photos.parent) not in card + json.dumps(about)
    assert (whole / "curves.svg").read_text().count("<circle") == 2 * 5
    modes = {path.stat().st_mode for path in whole.iterdir() if path.is_file()}
    assert len(modes) == 1  # whoever may read one file may read them all


@pytest.mark.parametrize("lost", ["weights.safetensors", "model-card.md", "metrics.jsonl"])
def test_what_a_kill_after_the_last_checkpoint_left_unwritten_is_written(
    photos, tmp_path, whole, lost
):
    shutil.copytree(whole, tmp_path / "run")
    for name in ("weights.safetensors", lost):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert run(photos, tmp_path / "run", distill=DISTILL).weights.exists()
    files = [load_file(folder / "weights.safetensors") for folder in (tmp_path / "run", whole)]
    assert same_tensors(*files)
    assert curve(tmp_path / "run") == curve(whole)


def test_after_a_kill_between_card_and_weights_both_are_of_the_last_epoch(
    photos, tmp_path, monkeypatch
):
    def dying(tensors, metadata):
        if json.loads(metadata["spptransfer"])["epochs"] == 2:
            raise KeyboardInterrupt
        return save(tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path)
    assert "after 2 epochs" in (tmp_path / "model-card.md").read_text()
    run(photos, tmp_path)
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["spptransfer"])["epochs"] == 2
    assert "after 2 epochs" in (tmp_path / "model-card.md").read_text()


def test_weights_of_another_number_of_epochs_are_written_anew(photos, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "weights.safetensors"
    save_file(load_file(path), path, metadata={"spptransfer": '{"epochs": 1}'})
    run(photos, tmp_path / "run", distill=DISTILL)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["spptransfer"])["epochs"] == 2


def test_two_runs_in_one_folder_are_refused(photos, tmp_path):
    held = exclusive_lock(tmp_path / "lock", f"the run '{tmp_path}'")
    refused = pytest.raises(CacheError, match=f"the run '{tmp_path}' is being written by process")
    with held, refused:
        run(photos, tmp_path)


def test_dropout_is_drawn_anew_in_every_step_and_the_same_after_a_restart(photos, tmp_path):
    seeds = []

    def note(seed):
        seeds.append(seed)
        return torch.default_generator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", note)
        run(photos, tmp_path / "one")
        whole_run = list(seeds)
        seeds.clear()
        run(photos, tmp_path / "two", steps=3)
        run(photos, tmp_path / "two")
    assert len(set(whole_run)) == len(whole_run) == 4
    assert seeds == whole_run


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stopped_run_continues_to_the_same_curve_and_weights(photos, tmp_path, whole, steps):
    stopped = run(photos, tmp_path / "run", steps=steps, distill=DISTILL)
    assert not stopped.finished
    assert run(photos, tmp_path / "run", distill=DISTILL).finished
    assert curve(tmp_path / "run") == curve(whole)
    one, other = load_checkpoint(tmp_path / "run"), load_checkpoint(whole)
    assert same_tensors(one["student"], other["student"])


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_curve(photos, tmp_path, whole):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values(photos, distill=DISTILL)))
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "spptransfer", "pretrain", str(path), "--out", str(folder)]
    command += ["--threads", "1", "--jobs", "2", "--device", "cpu", "--quiet"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (folder / CHECKPOINT).exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() != 0
    assert len(curve(folder)) < 2
    run(photos, folder, distill=DISTILL)
    assert curve(folder) == curve(whole)


def test_the_number_of_processes_that_prepare_images_changes_nothing(photos, tmp_path, whole):
    machine = TrainingMachine(tmp_path / "run", device="cpu", jobs=2, threads=1)
    pretrain(parse_pretraining(values(photos, distill=DISTILL)), machine)
    assert curve(tmp_path / "run") == curve(whole)


def test_a_finished_run_is_not_run_again(photos, whole):
    before = (whole / CHECKPOINT).stat().st_mtime_ns
    assert run(photos, whole, distill=DISTILL).finished
    assert (whole / CHECKPOINT).stat().st_mtime_ns == before


def test_another_pipeline_is_not_mixed_into_a_run(photos, whole):
    with pytest.raises(
        ConfigError, match="holds a training with other settings, images or teacher"
    ):
        run(photos, whole)


def test_weights_whose_checkpoint_was_deleted_are_not_written_over(photos, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).unlink()
    with pytest.raises(ConfigError, match="holds weights but no checkpoint to go on from"):
        run(photos, tmp_path / "run", distill=DISTILL)
    assert curve(tmp_path / "run") == curve(whole)
    files = [load_file(folder / "weights.safetensors") for folder in (tmp_path / "run", whole)]
    assert same_tensors(*files)


def test_a_teacher_may_move_but_not_change(photos, tmp_path):
    path, moved = tmp_path / "teacher.pth", tmp_path / "moved.pth"
    torch.save(random_network("squeezenet1_1", 1)[0].state_dict(), path)
    teacher = {**DISTILL, "weights": str(path)}
    run(photos, tmp_path / "run", steps=1, distill=teacher)
    path.rename(moved)
    assert not run(
        photos, tmp_path / "run", steps=1, distill={**teacher, "weights": str(moved)}
    ).finished
    torch.save(random_network("squeezenet1_1", 2)[0].state_dict(), moved)
    with pytest.raises(ConfigError, match="other settings, images or teacher"):
        run(photos, tmp_path / "run", distill={**teacher, "weights": str(moved)})


def _without_its_tensors(whole):
    """A checkpoint whose description points at what is not there."""
    return whole.replace(b"q\x00", b"h\xff", 1)


@pytest.mark.parametrize(
    "damage", [lambda whole: b"nothing", lambda whole: whole[:-99], _without_its_tensors]
)
def test_a_damaged_checkpoint_is_named(photos, tmp_path, whole, damage):
    content = (whole / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(damage(content))
    with pytest.raises(WeightsError, match=r"the checkpoint '.*' cannot be read"):
        run(photos, tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_that_is_a_bare_pickle_is_refused_without_advice_to_run_it(photos, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps({"format": 1}))
    with pytest.raises(WeightsError, match="damaged, or more than a run's state"):
        run(photos, tmp_path)


def test_a_checkpoint_that_names_no_training_is_another_training(photos, tmp_path):
    torch.save({"format": 1}, tmp_path / CHECKPOINT)
    with pytest.raises(ConfigError, match="holds a training with other settings"):
        run(photos, tmp_path)


def test_a_checkpoint_that_carries_code_is_refused(photos, tmp_path):
    torch.save({"format": 1, "run": threading.Event}, tmp_path / CHECKPOINT)
    with pytest.raises(WeightsError, match="cannot be read"):
        run(photos, tmp_path)


def test_training_that_diverges_is_told_with_what_to_do(photos, tmp_path):
    with pytest.raises(ModelError, match=r"training diverged .* lower training\.learning_rate"):
        run(photos, tmp_path / "run", training={"learning_rate": 1e30})


def test_training_that_diverges_in_its_last_step_leaves_no_weights(photos, tmp_path):
    with pytest.raises(ModelError, match="in epoch 1, step 1: the class scores are not finite"):
        run(photos, tmp_path, training={"learning_rate": 1e30, "epochs": 1, "batch": 100})
    assert not (tmp_path / "weights.safetensors").exists()
    assert not curve(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_images_in_a_folder_whose_name_is_not_utf8_are_trained_on(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "\udcff")
    (tmp_path / "link").symlink_to(root)
    outcome = run(tmp_path / "link", tmp_path / "run", training={"epochs": 1})
    assert outcome.weights.exists()
    assert "trained on \\udcff" in (tmp_path / "run" / "model-card.md").read_text()


def test_what_does_not_fit_in_memory_is_told_with_what_to_do(photos, tmp_path):
    with pytest.raises(ModelError, match=r"not enough memory .* lower training\.batch, 8, or"):
        run(photos, tmp_path, network={"levels": [100_000]})


def _no_memory(*arguments):
    raise MemoryError


@pytest.mark.parametrize(
    ("culprit", "told"),
    [
        ("spptransfer.pretraining.source.views", r"the teacher; lower distill\.scale, 33, or"),
        (
            "spptransfer.pretraining.training.losses",
            r"this network .* lower training\.batch, 8, or",
        ),
    ],
    ids=["teacher", "network"],
)
def test_memory_is_asked_of_the_setting_that_took_it(photos, tmp_path, monkeypatch, culprit, told):
    monkeypatch.setattr(culprit, _no_memory)
    with pytest.raises(ModelError, match=f"not enough memory for {told}"):
        run(photos, tmp_path, distill=DISTILL)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers begin with a new Python")
def test_a_process_that_prepares_images_and_is_killed_is_one_line(photos, tmp_path, monkeypatch):
    training = os.getpid()

    def killed(data, renderings):
        if os.getpid() != training:
            os.kill(os.getpid(), signal.SIGKILL)
        return images.views(data, renderings)

    monkeypatch.setattr("spptransfer.pretraining.source.views", killed)
    with pytest.raises(ModelError, match=r"^DataLoader worker \(pid.*; --jobs 0 prepares the"):
        pretrain(parse_pretraining(values(photos)), TrainingMachine(tmp_path, device="cpu", jobs=1))


def test_weights_may_be_saved_in_half_precision(photos, tmp_path):
    outcome = run(photos, tmp_path / "run", training={"weights": "float16", "epochs": 1})
    single = backbones.load("zf5-64", outcome.weights)
    trained = load_checkpoint(tmp_path / "run")["student"]
    assert outcome.weights.stat().st_size < 2.1 * sum(value.numel() for value in trained.values())
    assert single.trunk[0].weight.dtype == torch.float32


def test_numbers_too_large_for_half_precision_are_told_and_may_be_saved_in_single(photos, tmp_path):
    half, single = ({"weights": kind, "epochs": 2} for kind in ("float16", "float32"))
    run(photos, tmp_path, steps=1, training=half)
    state = load_checkpoint(tmp_path)
    state["student"]["network.bn1.running_var"] += 1e6
    save_checkpoint(tmp_path, state)
    with pytest.raises(ModelError, match=r"bn1\.running_var holds numbers beyond float16"):
        run(photos, tmp_path, training=half)
    assert not (tmp_path / "weights.safetensors").exists()
    outcome = run(photos, tmp_path, training=single)
    assert load_file(outcome.weights)["bn1.running_var"].min() > 65504


def test_a_damaged_image_is_named_once_and_counted(tmp_path, caplog):
    root = draw_folder(tmp_path / "photos", per_class=10)
    for name in ("000", "001", "002"):
        (root / "bee" / f"{name}.png").write_bytes(b"nothing")
    history = run(root, tmp_path / "run", training={"batch": 7}).history
    assert [line["damaged"] for line in history] == [3, 3]
    told = [message for message in caplog.messages if "is left out: no image of" in message]
    assert len(told) == 3
    assert "of these 3 damaged ones" in (tmp_path / "run" / "model-card.md").read_text()


def test_torchs_generator_and_threads_are_left_as_they_were(photos, tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run(photos, tmp_path / "run", training={"epochs": 1})
    assert torch.get_rng_state().equal(state)
    assert torch.get_num_threads() == threads


def test_a_network_learns_what_it_is_shown(photos, tmp_path):
    training = {"epochs": 30, "learning_rate": 0.05, "checkpoint_every": 100}
    outcome = run(photos, tmp_path / "run", training=training, images={"flip": False})
    first, last = outcome.history[0], outcome.history[-1]
    assert last["loss"] < 0.7 * first["loss"]


def test_the_teacher_is_approached(photos, tmp_path):
    training = {"epochs": 8, "learning_rate": 0.02, "checkpoint_every": 100}
    outcome = run(photos, tmp_path / "run", training=training, distill=DISTILL)
    assert outcome.history[-1]["distillation"] < outcome.history[0]["distillation"]
    assert next((tmp_path / "run").glob("teacher-*/part-00000.npy")).exists()
