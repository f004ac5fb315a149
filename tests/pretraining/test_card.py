from __future__ import annotations

import json

import pytest
import yaml

from spptransfer.pretraining.card import Facts, model_card
from spptransfer.pretraining.config import parse_pipeline

DISTILL = {"backbone": "alexnet", "weights": "/home/me/secret/alexnet.pth"}
LINE = {"epoch": 1, "val_top1": 0.25, "val_top5": 0.5, "seconds": 90.0}


def facts(changes=None, damaged=0, **sections):
    sections = {"dataset": {"root": "/home/me/secret/photos.zip"}, **sections}
    values = {
        "pipeline": parse_pipeline(sections),
        "data_name": "photos.zip",
        "data_sha256": "0123abcd",
        "classes": ("bee", "cat"),
        "images": 4000,
        "validation_images": 1000,
        "damaged": damaged,
        "parameters": 1234567,
        "precision": "bfloat16",
        "processes": 2,
        "device": "cpu",
        "teacher_sha256": "4567ef" if "distill" in sections else None,
    }
    return Facts(**{**values, **(changes or {})})


def card(found):
    return model_card(found.as_json([LINE]))


@pytest.mark.parametrize("sections", [{}, {"distill": DISTILL}])
def test_no_folder_of_this_machine_is_told(sections):
    found = facts(**sections)
    assert "secret" not in card(found) + json.dumps(found.as_json([LINE]))


def test_the_card_tells_data_accuracy_and_what_it_was_measured_on():
    text = card(facts(dataset={"root": "x", "licence": "CC-BY 4.0"}))
    for told in (
        "1,234,567 parameters for 2 classes",
        "`photos.zip`: 4,000 images to train on and 1,000 to validate.",
        "| 25.00 % | 50.00 % |",
        "1,000 images (`val`), one central crop of 224 x 224 pixels",
        "`0123abcd`",
        "Terms of the images: CC-BY 4.0.",
        "bfloat16 on cpu, 2 processes, 90 s",
        "No other network's weights or features were used.",
    ):
        assert told in text, told


def test_what_is_not_known_is_said():
    text = card(facts(damaged=3))
    assert "Terms of the images: not stated" in text
    assert "; of these 3 damaged ones were not used. Names" in text
    assert "after 1 epoch (of 70: the training is not finished)." in text


def test_images_held_out_are_called_so():
    found = facts(dataset={"root": "x", "val": None, "holdout": 0.2})
    assert "held out, 20 % of every class" in found.measured_on()


def test_the_recipe_in_the_card_is_a_pipeline_that_trains_the_same():
    found = facts(distill=DISTILL, training={"epochs": 9}, network={"levels": [4, 3, 2, 1]})
    (recipe,) = [part for part in card(found).split("```") if part.startswith("yaml")]
    again = parse_pipeline(yaml.safe_load(recipe.removeprefix("yaml")))
    assert again.model_dump(mode="json") == found.settings()


def test_a_teacher_is_named_with_its_hash():
    text = card(facts(distill=DISTILL))
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
    assert facts(network=network).as_json([LINE])["levels"] == levels
