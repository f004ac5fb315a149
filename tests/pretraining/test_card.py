from __future__ import annotations

import json

import pytest
import yaml

from spptransfer.pretraining.card import describe_epochs, describe_training, model_card
from spptransfer.pretraining.config import parse_pretraining

DISTILL = {"backbone": "alexnet", "weights": "/home/me/secret/alexnet.pth"}
DATA = {"name": "photos.zip", "sha256": "0123abcd", "images": 4000, "validation_images": 1000}
LINE = {"epoch": 1, "val_top1": 0.25, "val_top5": 0.5, "seconds": 90.0, "damaged": 3}


def about(**sections):
    pipeline = parse_pretraining({"dataset": {"root": "/home/me/secret/photos.zip"}, **sections})
    measured = {
        "parameters": 1234567,
        "machine": {"device": "cpu", "processes": 2, "precision": "bfloat16"},
        "teacher_sha256": "4567ef" if "distill" in sections else None,
    }
    return describe_epochs(describe_training(pipeline, DATA, ("bee", "cat")) | measured, [LINE])


@pytest.mark.parametrize("sections", [{}, {"distill": DISTILL}])
def test_no_folder_of_this_machine_is_told(sections):
    found = about(**sections)
    assert "secret" not in model_card(found) + json.dumps(found)


def test_the_card_tells_data_accuracy_and_what_it_was_measured_on():
    text = model_card(about(dataset={"root": "x", "licence": "CC-BY 4.0"}))
    for told in (
        "1,234,567 parameters for 2 classes",
        "`photos.zip`: 4,000 images to train on and 1,000 to validate; of these 3 damaged ones",
        "| 25.00 % | 50.00 % |",
        "1,000 images (`val`), one central crop of 224 x 224 pixels",
        "`0123abcd`",
        "after 1 epoch (of 70: the training is not finished).",
        "Terms of the images: CC-BY 4.0.",
        "bfloat16 on cpu, 2 processes, 90 s",
        "No other network's weights or features were used.",
    ):
        assert told in text, told
    assert "Terms of the images: not stated" in model_card(about())


def test_images_held_out_are_called_so():
    found = about(dataset={"root": "x", "val": None, "holdout": 0.2})
    assert "held out, 20 % of every class" in found["accuracy"]["measured_on"]


def test_the_recipe_in_the_card_is_a_pipeline_that_trains_the_same():
    found = about(distill=DISTILL, training={"epochs": 9}, network={"levels": [4, 3, 2, 1]})
    text = model_card(found)
    (recipe,) = [part for part in text.split("```") if part.startswith("yaml")]
    again = parse_pretraining(yaml.safe_load(recipe.removeprefix("yaml")))
    assert again.model_dump(mode="json") == found["pipeline"]
    assert "`alexnet` at layer\n`spp` (weights with the SHA-256 `4567ef`)" in text
    assert "The teacher's weights have terms of their own." in text


@pytest.mark.parametrize(
    ("network", "levels"),
    [
        ({}, [6, 3, 2, 1]),
        ({"levels": [4, 3, 2, 1]}, [4, 3, 2, 1]),
        ({"name": "zf5-no-spp"}, [6]),
    ],
)
def test_the_pyramid_is_told_whether_chosen_or_not(network, levels):
    assert about(network=network)["levels"] == levels
