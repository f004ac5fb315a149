from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from spptransfer.errors import ConfigError
from spptransfer.sections import override, read_mapping, replace


class Schema(BaseModel):
    section: dict[str, int] | None = None


def test_overrides_are_applied_in_order_to_a_copy(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("section: {low: 1}\n")
    found = read_mapping(path, Schema, ["section.low=2", "section.rows=[{label: x}]", "a.b=1"])
    assert found == {"section": {"low": 2, "rows": [{"label": "x"}]}, "a": {"b": 1}}


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfsection: {low: 1}\n")
    assert read_mapping(path, Schema) == {"section": {"low": 1}}


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
        override({}, [assignment])


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
