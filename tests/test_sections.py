from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from spptransfer.errors import ConfigError
from spptransfer.sections import (
    ByName,
    PathText,
    Section,
    check,
    named_section,
    override,
    read_mapping,
    replace,
)


class Row(Section):
    label: str


def listed(value):
    return value if isinstance(value, list) else [value]


class Part(Section):
    rows: tuple[Row, ...] = ()
    low: Annotated[int, Field(ge=0)] = 0
    high: int = 1
    words: Annotated[tuple[str, ...], BeforeValidator(listed)] | None = None

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
        ({"lwo": 1}, "unknown key 'section.lwo'; did you mean 'low'? allowed: rows, low, high, w"),
        ({"low": 3, "high": 2}, "section: low must be at most high"),
        ({"low": "a" * 99}, "section.low: input should be a valid integer, unable to parse"),
        ({"l\now": 1}, r"unknown key 'section.l\now'; did you mean 'low'?"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_allowed(section, told):
    line = mistake({"section": section})
    assert line.startswith(told)
    assert "aaaa" not in line


@pytest.mark.parametrize(
    ("pet", "told"),
    [
        ({"name": ["cat"]}, "pet.name: \"['cat']\" is unknown; did you mean 'cat'? "),
        ({"name": "c\nt"}, r"pet.name: 'c\nt' is unknown; did you mean 'cat'? "),
        ({}, "required key 'pet.name' is missing; allowed: cat, sea-dog"),
        ({"name": "cat"}, "required key 'pet.place' is missing: where it sleeps"),
        ({"name": "cat", "place": None}, "required key 'pet.place' is missing: where it sleeps"),
        ({"name": "sea-dog", "lives": 1}, "unknown key 'pet.lives'; allowed: name, place, tail"),
        ({"name": "cat", "place": "x", "lives": "?"}, "pet.lives: input should be a valid integer"),
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


def test_a_key_of_another_section_is_suggested_with_that_section():
    assert mistake({"low": 1}).startswith("unknown key 'low'; did you mean 'section.low'? allowed:")
    assert mistake({"pet": {"plce": 1}}).startswith(
        "unknown key 'pet.plce'; did you mean 'place'? allowed: name, place, lives, tail"
    )


# ---- reading, and replacing by --set ----


def read(tmp_path, text, overrides=()):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_mapping(path, Schema, overrides)


def test_overrides_are_applied_in_order_to_what_was_read(tmp_path):
    overrides = ["section.low=2", "section.low=3", "section.rows=[{label: x}]", "a.b=1"]
    found = read(tmp_path, b"\xef\xbb\xbfsection: {low: 1}\n", overrides)
    assert found == {"section": {"low": 3, "rows": [{"label": "x"}]}, "a": {"b": 1}}


@given(st.dictionaries(st.text("ab", min_size=1), st.dictionaries(st.text("cd"), st.integers())))
def test_replacing_a_value_changes_no_other_and_not_the_original(values):
    before = {key: dict(section) for key, section in values.items()}
    changed = replace(values, "a.c", "new", "set a.c")
    assert values == before
    assert changed == {**before, "a": {**before.get("a", {}), "c": "new"}}


@pytest.mark.parametrize("assignment", ["a", "=1", "a.=1", ".a=1", "a=[1", "a=" + "[" * 3000])
def test_what_is_no_assignment_is_refused(assignment):
    with pytest.raises(ConfigError, match="--set"):
        override({}, [assignment])


TEXTS = ("photos #2", "2012", "yes", "2024-01-05", "a: b", "[x", "'q'", "1e3", " x ", "@here", "*")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["cat", "sea-dog"])
def test_where_a_string_is_wanted_the_shells_text_is_taken_as_it_is(text, name):
    given = [f"pet.place={text}", f"pet.name={name}"]
    assert check(Schema, override({}, given, Schema)).pet.place == text


def test_null_is_no_text_and_numbers_and_lists_are_yaml():
    given = ["pet={name: sea-dog, place: x}", "pet.place=null", "section.high=010  # ten"]
    found = check(Schema, override({}, [*given, "section.rows=[{label: '1'}]"], Schema))
    assert found.pet.place is None
    assert (found.section.high, found.section.rows) == (10, (Row(label="1"),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4", ("4",)),
        ("conv 4 # b", ("conv 4 # b",)),
        ("[4, 010, 'fc 6', yes]", ("4", "010", "fc 6", "yes")),
        ("[null]", ("null",)),
        ("null", None),
    ],
)
def test_where_a_list_of_strings_is_wanted_so_is_its_only_one_or_each(text, words):
    found = check(Schema, override({}, [f"section.words={text}"], Schema))
    assert found.section.words == words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0224", 224),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1e-1", 0.1),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-05", "2024-01-05"),
        ("yes", "yes"),
        ("true", True),
        ("", None),
        ("~", None),
    ],
)
def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path, text, value):
    found = read(tmp_path, f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))
