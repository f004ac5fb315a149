from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, model_validator

from spptransfer.errors import ConfigError
from spptransfer.sections import ByName, PathText, Section, check, named_section


class Row(Section):
    label: str


class Part(Section):
    rows: tuple[Row, ...] = ()
    low: Annotated[int, Field(ge=0)] = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError("low must be at most high")
        return self


class Animal(Section):
    name: str
    place: PathText | None = None


class CatOptions(BaseModel):
    place: PathText = Field(description="where it sleeps")
    lives: int = 9


ANIMALS = {
    "cat": named_section(Animal, "cat", CatOptions),
    "sea-dog": named_section(Animal, "sea-dog", fields={"tail": (bool, True)}),
}


class Schema(Section):
    section: Part | None = None
    animal: Annotated[Animal, ByName(lambda: ANIMALS)] | None = None
    pet: Annotated[Animal, ByName(lambda: ANIMALS)] = ANIMALS["sea-dog"](name="sea-dog")


def mistake(values, where=""):
    with pytest.raises(ConfigError) as caught:
        check(Schema, values, where)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"lwo": 1}, "unknown key 'section.lwo'; did you mean 'low'? allowed: rows, low, high"),
        ({"rows": [{"labl": "a"}]}, "unknown key 'section.rows.0.labl'; did you mean 'label'? "),
        ({"rows": [{}]}, "required key 'section.rows.0.label' is missing"),
        ({"low": -1}, "section.low: input should be greater than or equal to 0, got -1"),
        ({"low": 3, "high": 2}, "section: low must be at most high"),
        ({"low": "a" * 99}, "section.low: input should be a valid integer, unable to parse"),
        ({"l\now": 1}, r"unknown key 'section.l\now'; did you mean 'low'?"),
        (7, "section: must be a mapping of keys, got 7"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_allowed(section, told):
    line = mistake({"section": section})
    assert line.startswith(told)
    assert "aaaa" not in line


@pytest.mark.parametrize(
    ("pet", "told"),
    [
        ({"name": "cta"}, "pet.name: 'cta' is unknown; did you mean 'cat'? allowed: cat, sea-dog"),
        ({"name": ["cat"]}, "pet.name: \"['cat']\" is unknown; did you mean 'cat'? "),
        ({"name": "c\nt"}, r"pet.name: 'c\nt' is unknown; did you mean 'cat'? "),
        ({}, "required key 'pet.name' is missing; allowed: cat, sea-dog"),
        ("cat", "pet: must be a mapping of keys, got 'cat'"),
        ({"name": "cat"}, "required key 'pet.place' is missing: where it sleeps"),
        ({"name": "cat", "place": None}, "required key 'pet.place' is missing: where it sleeps"),
        (
            {"name": "cat", "livs": 1},
            "unknown key 'pet.livs'; did you mean 'lives'? allowed: name, ",
        ),
        ({"name": "sea-dog", "lives": 1}, "unknown key 'pet.lives'; allowed: name, place, tail"),
        ({"name": "cat", "place": "x", "lives": "?"}, "pet.lives: input should be a valid integer"),
        ({"name": "cat", "place": 3}, "pet.place: must be a string, got 3"),
    ],
)
def test_the_name_of_a_section_decides_which_keys_it_has(pet, told):
    assert mistake({"pet": pet}).startswith(told)


def test_a_chosen_section_keeps_what_it_was_given_and_its_defaults():
    found = check(Schema, {"pet": {"name": "cat", "place": Path("sofa")}}).pet
    assert (found.name, found.place, found.lives) == ("cat", "sofa", 9)
    assert isinstance(found, Animal)
    assert found.model_dump() == {"name": "cat", "place": "sofa", "lives": 9}
    with pytest.raises(ValueError, match="frozen"):
        found.lives = 8


def test_an_unknown_key_comes_before_what_it_leaves_missing():
    assert "unknown key" in mistake({"section": {"rows": [{"labl": "a"}]}})
    assert "unknown key" in mistake({"pet": {"name": "cat", "plase": "sofa"}})


def test_a_section_that_stands_alone_is_named():
    assert mistake({"low": 1}, "zoo").startswith("unknown key 'zoo.low'; ")
    assert mistake({"section": 7}, "zoo").startswith("zoo.section: must be a mapping")
