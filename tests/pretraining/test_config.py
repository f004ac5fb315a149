from __future__ import annotations

import json
from pathlib import Path

import pytest
from releases import needs

from spptransfer.errors import ConfigError
from spptransfer.pretraining.config import PretrainingPipeline, parse_pretraining, read_pretraining

PIPELINES = Path(__file__).parent.parent.parent / "pipelines"
ROOT = {"dataset": {"root": "photos"}}


def test_the_papers_recipe_is_the_default():
    pipeline = parse_pretraining(ROOT)
    images, training = pipeline.images, pipeline.training
    assert (images.resize, images.size, images.small, images.crops) == (256, 224, 180, "corners")
    assert (training.learning_rate, training.momentum, training.weight_decay) == (0.01, 0.9, 5e-4)
    assert (training.schedule, training.divisions, training.batch) == ("plateau", 2, 128)
    assert (training.epochs, pipeline.network.dropout) == (70, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'epochs'"),
        ({"distill": {"backbon": "alexnet"}}, "unknown key 'distill.backbon'; did you mean 'backb"),
        ({"netwrk": {}}, "unknown key 'netwrk'; did you mean 'network'"),
        ({"network": {"name": "zf6"}}, "network: unknown network 'zf6': did you mean 'zf5"),
        ({"images": {"size": 300}}, "size must be at most resize, 256"),
        ({"images": {"sizes": "multi", "small": 224}}, "small must be less than size, 224"),
        ({"images": {"sizes": "both"}}, "images.sizes: input should be 'single', 'multi' or"),
        ({"training": {"batch": 0}}, "training.batch: .*, got 0"),
        ({"training": {"nesterov": True, "momentum": 0}}, "nesterov needs a momentum"),
        ({"training": {"warmup": 70}}, "warmup must be shorter"),
        ({"distill": {"backbone": "alexnt"}}, "did you mean 'alexnet'"),
        ({"distill": {"backbone": "alexnet", "layer": "fc6", "levels": [2]}}, "is a vector"),
        (
            {"network": {"name": "zf5-no-spp"}, "images": {"sizes": "multi"}},
            "only a network with SPP",
        ),
        ({"network": {"name": "zf5-no-spp", "levels": [4, 2]}}, "has no pyramid to choose"),
        ({"images": {"size": 20}}, "'zf5' needs at least 31 pixels"),
        ({"distill": {"backbone": "alexnet", "scale": 30}}, "scale: 'alexnet' needs at least 31 p"),
        ({"training": {"seed": 2**64}}, "training.seed: .* less than 9223372036854775808, got"),
        ({"training": {"seed": True}}, "training.seed: .* valid integer, got True"),
        ({"training": {"divisions": 1.0}}, "training.divisions: .* valid integer, got 1.0"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_pretraining({**ROOT, **values})
    assert "\n" not in str(error.value)


def test_a_root_is_needed():
    with pytest.raises(ConfigError, match=r"'dataset\.root' is missing"):
        parse_pretraining({"dataset": {}})


def test_overrides_replace_single_values(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("dataset: {root: photos}\ntraining: {epochs: 3, batch: 4}\n")
    pipeline = read_pretraining(path, ["training.epochs=9", "network.levels=[4, 3, 2, 1]"])
    assert (pipeline.training.epochs, pipeline.training.batch) == (9, 4)
    assert pipeline.network.levels == (4, 3, 2, 1)


@pytest.mark.parametrize("text", ["- 1", "a: [", "a: 1\na: 2"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "small.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"small\.yaml"):
        read_pretraining(path)


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("pretrain-*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_pipeline_file_is_valid(path):
    assert read_pretraining(path).dataset.licence


def test_the_shipped_zf5_has_the_papers_recipe_for_several_sizes():
    shipped = read_pretraining(PIPELINES / "pretrain-zf5.yaml")
    default = parse_pretraining({"dataset": {"root": "imagenet"}})
    assert shipped.images == default.images.model_copy(update={"sizes": "multi"})
    assert shipped.training == default.training
    assert shipped.network.levels == (6, 3, 2, 1)


@needs("pydantic", "2.12", "the same schema is written in other words")
def test_the_exported_json_schema_is_current():
    exported = json.loads((PIPELINES / "pretraining.schema.json").read_text())
    assert exported == PretrainingPipeline.model_json_schema(), "run: make schema"


def test_a_file_without_keys_is_told_which_it_needs(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    told = "must hold the key dataset, and may hold network, images, training, distill"
    with pytest.raises(ConfigError, match=told):
        read_pretraining(tmp_path / "empty.yaml")
