from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spptransfer.errors import ConfigError
from spptransfer.yaml_files import explain, override, read_mapping, replace


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: str


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rows: tuple[Row, ...] = ()
    low: Annotated[int, Field(ge=0)] = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError("low must be at most high")
        return self


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")
    section: Section | None = None


def mistake(values):
    with pytest.raises(ValidationError) as caught:
        Schema.model_validate(values)
    return explain(caught.value, Schema)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"lwo": 1}, "unknown key 'section.lwo'; did you mean 'low'? allowed: rows, low, high"),
        ({"rows": [{"labl": "a"}]}, "unknown key 'section.rows.0.labl'; did you mean 'label'? "),
        ({"rows": [{}]}, "'section.rows.0.label' is missing"),
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
    assert "\n" not in line
    assert "aaaa" not in line


def test_an_unknown_key_comes_before_what_it_leaves_missing():
    assert "unknown key" in mistake({"section": {"rows": [{"labl": "a"}]}})


def test_overrides_are_applied_in_order_to_a_copy(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("section: {low: 1}\n")
    found = read_mapping(path, Schema, ["section.low=2", "section.rows=[{label: x}]", "a.b=1"])
    assert found == {"section": {"low": 2, "rows": [{"label": "x"}]}, "a": {"b": 1}}


@given(st.dictionaries(st.text("ab", min_size=1), st.dictionaries(st.text("cd"), st.integers())))
def test_replacing_a_value_changes_no_other_and_not_the_original(values):
    before = {key: dict(section) for key, section in values.items()}
    changed = replace(values, "a.c", "new", "set a.c")
    assert values == before
    assert changed["a"]["c"] == "new"
    assert {k: v for k, v in changed.items() if k != "a"} == {
        k: v for k, v in before.items() if k != "a"
    }


@pytest.mark.parametrize("assignment", ["a", "=1", "a.=1", ".a=1", "a=[1", "a=" + "[" * 3000])
def test_what_is_no_assignment_is_refused(assignment):
    with pytest.raises(ConfigError, match="--set"):
        override({}, assignment)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "must hold the key section"),
        ("a: [", "is no YAML file"),
        ("section: {low: 1, low: 2}", "key 'low' occurs twice"),
        ("a: !!python/name:os.system", "is no YAML file"),
    ],
)
def test_what_is_no_mapping_is_refused_by_name(tmp_path, text, told):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        read_mapping(path, Schema)
    assert str(path) in str(caught.value)
