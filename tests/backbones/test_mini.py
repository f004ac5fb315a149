from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spptransfer import backbones
from spptransfer.backbones import weights

INFO = backbones.describe("spp-mini")
FILE = Path(backbones.__file__).parent / "spp_mini.safetensors"


def test_the_file_is_small_half_precision_and_says_what_it_is():
    assert FILE.stat().st_size < 6_000_000
    with safe_open(FILE, "pt") as file:
        about = json.loads(file.metadata()["spptransfer"])
    assert about["network"] == "spp-mini"
    assert about["data"]["name"] == "tiny-imagenet-40k.zip"
    assert len(about["classes"]) == INFO.num_classes
    tensors = load_file(FILE).values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_the_catalogue_and_the_model_card_name_the_file_that_is_shipped():
    sha256 = weights.sha256_of(FILE)
    assert INFO.weights["embedded"].sha256 == sha256
    assert sha256 in FILE.with_suffix(".md").read_text(encoding="utf-8")


def test_the_recipe_that_is_shipped_is_the_one_it_was_trained_by():
    from spptransfer.pretraining.config import read_pretraining

    with safe_open(FILE, "pt") as file:
        about = json.loads(file.metadata()["spptransfer"])["pipeline"]
    recipe = Path(__file__).parents[2] / "pipelines" / "pretrain-spp-mini.yaml"
    stated = json.loads(read_pretraining(recipe).model_dump_json())
    # The teacher's weights may be named or given as a file.
    assert stated.pop("distill") | {"weights": None} == about.pop("distill") | {"weights": None}
    # Left out since: it changed no number.
    assert about["training"].pop("compile") is False
    assert stated == about


def test_loading_opens_no_connection(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a socket"))
    backbone = backbones.load("spp-mini", "embedded")
    assert backbone.weights_sha256 == weights.sha256_of(FILE)
