from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from releases import needs

from spptransfer import datasets, protocols
from spptransfer.config import (
    DatasetSection,
    Pipeline,
    ProtocolSection,
    cell_pipeline,
    parse_pipeline,
    read_pipeline,
)
from spptransfer.errors import ConfigError

MINIMAL = {"dataset": {"name": "demo"}, "protocol": {"name": "folder"}}


def with_section(section: str, **values):
    return {**MINIMAL, section: {**MINIMAL.get(section, {}), **values}}


@pytest.fixture
def pipeline_file(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: {name: demo}\nprotocol: {name: folder, splits: 3}\n")
    return path


def test_levels_and_scales_are_left_to_the_backbone_by_default():
    features = parse_pipeline(MINIMAL).features
    assert (features.levels, features.scales, features.view) == (None, None, "full")
    assert parse_pipeline(with_section("features", levels=None, scales=None)).features == features


def test_one_scale_and_one_C_need_no_brackets():
    pipeline = parse_pipeline({**with_section("features", scales=392), "classifier": {"C": 1}})
    assert pipeline.features.scales == (392,)
    assert pipeline.classifier.C == (1.0,)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("features.scales=[224, 392]", "features", "scales", (224, 392)),
        ("features.flip=true", "features", "flip", True),
        ("features.weights=some/file.pth", "features", "weights", "some/file.pth"),
        ("classifier.C=0.5", "classifier", "C", (0.5,)),
        ("classifier.class_weight={1: 2, -1: 1}", "classifier", "class_weight", {1: 2, -1: 1}),
        ("dataset.root=a=b", "dataset", "root", "a=b"),
    ],
)
def test_set_replaces_one_value(pipeline_file, override, section, key, value):
    pipeline = read_pipeline(pipeline_file, [override])
    assert getattr(getattr(pipeline, section), key) == value


def test_weights_of_positives_and_negatives_are_written_as_they_were_read(pipeline_file):
    pipeline = read_pipeline(pipeline_file, ["classifier.class_weight={1: 2, -1: 1.5}"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pipeline.model_dump()["classifier"]["class_weight"] == {1: 2, -1: 1.5}
        written = json.loads(pipeline.model_dump_json())["classifier"]["class_weight"]
    assert written == {"1": 2, "-1": 1.5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_section("features", levls=[1]), "unknown key 'features.levls'; did you mean 'level"),
        ({**MINIMAL, "clasifier": {}}, "unknown key 'clasifier'; did you mean 'classifier'"),
        (with_section("features", levels=[6, "a"]), r"features.levels.1: .*integer, got 'a'"),
        (with_section("features", levels=[0]), "features.levels.0: .*greater than or equal to 1"),
        (with_section("features", levels=3), "features.levels: must be a list, got 3"),
        (with_section("features", view="crop"), "'full', 'center_crop' or 'warp', got 'crop'"),
        (with_section("features", flip="perhaps"), "features.flip: .*boolean"),
        (with_section("features", backbone=3), "features.backbone: must be a string, got 3"),
        (with_section("classifier", C=-1), "classifier.C.0: .*greater than 0, got -1"),
        (with_section("classifier", C=1e100), "classifier.C.0: must be at most 1e\\+20, got 1e"),
        (with_section("classifier", C=[]), "classifier.C: must not be empty"),
        (with_section("classifier", scheduler="tcp://a:1"), "scheduler 'tcp://a:1' goes with"),
        (with_section("classifier", class_weight="heavy"), "must be 'balanced' or weights"),
        (with_section("classifier", class_weight={2: 1}), "must be 'balanced' or weights"),
        (with_section("classifier", normalize=["l3"]), "'l2', 'l2_block', 'mean_length'"),
        ({**MINIMAL, "features": [1]}, "features: must be a mapping of keys"),
        ({"dataset": {}, "protocol": {"name": "folder"}}, "'dataset.name' is missing"),
        ({"dataset": {"name": "demo"}}, "'protocol' is missing"),
        (with_section("dataset", name="caltech"), "dataset.name: 'caltech' is unknown; did you me"),
        (with_section("dataset", sed=1), "unknown key 'dataset.sed'; did you mean 'seed'"),
        (with_section("dataset", seed=-1), "dataset.seed: .*greater than or equal to 0, got -1"),
        (with_section("dataset", root=3), "dataset.root: must be a string, got 3"),
        (with_section("dataset", name="folder"), "'dataset.root' is missing: a folder that holds"),
        (with_section("dataset", name="csv"), "'dataset.root' is missing: a CSV file with the he"),
        (
            with_section("dataset", name="csv", root="a.csv", separater="|"),
            "unknown key 'dataset.separater'; did you mean 'separator'\\? allowed: name, root, sep",
        ),
        (
            with_section("dataset", name="csv", root="a.csv", separator=""),
            "dataset.separator: must not be empty",
        ),
        (with_section("protocol", name="foldr"), "protocol.name: 'foldr' is unknown; did you mean"),
        (with_section("protocol", splits=0), "protocol.splits: .*greater than or equal to 1"),
        (with_section("protocol", choose_C="each"), "protocol.choose_C: .*'shared' or 'per class'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_pipeline(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys dataset, protocol, and may hold features, classifier, detection, grid"),
        ("a: [", "is no YAML file"),
        ("dataset: {name: demo}\ndataset: {name: voc2007}", "key 'dataset' occurs twice"),
        ("dataset: !!python/object/apply:os.system [ls]", "is no YAML file"),
        ("[" * 3000, "is no pipeline file: it is nested too deeply"),
        ("a: " + "9" * 5000, "is no YAML file"),
    ],
)
def test_what_is_no_pipeline_file_is_said_in_one_line(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_pipeline(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*absent.yaml': No such file"):
        read_pipeline(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_pipeline(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="is no YAML file"):
        read_pipeline(tmp_path / "latin.yaml")


def test_a_section_knows_its_options_and_settings_with_their_defaults():
    pipeline = parse_pipeline(
        {
            "dataset": {"name": "csv", "root": "labels.csv"},
            "protocol": {"name": "caltech101", "splits": 2},
        }
    )
    assert isinstance(pipeline.dataset, DatasetSection)
    assert pipeline.dataset.options() == {"separator": ";"}
    assert isinstance(pipeline.protocol, ProtocolSection)
    settings = pipeline.protocol.settings()
    assert settings == protocols.get("caltech101").settings({"splits": 2})
    assert parse_pipeline(pipeline.model_dump()) == pipeline
    assert parse_pipeline(json.loads(pipeline.model_dump_json())) == pipeline


def keys_in_schema(section):
    schema = Pipeline.model_json_schema()
    mapping = schema["properties"][section]["discriminator"]["mapping"]
    return {
        name: schema["$defs"][reference.rpartition("/")[2]]["properties"]
        for name, reference in mapping.items()
    }


def test_the_json_schema_knows_every_key_of_every_dataset_and_protocol():
    found = keys_in_schema("dataset")
    assert tuple(found) == datasets.names()
    assert list(found["csv"]) == ["name", "root", "separator"]
    assert found["demo"]["seed"] | {"minimum": 0, "default": 0} == found["demo"]["seed"]
    found = keys_in_schema("protocol")
    for name, protocol in protocols.PROTOCOLS.items():
        assert found[name].keys() == {"name", *protocol.defaults}
        for key, default in protocol.defaults.items():
            assert found[name][key]["default"] == default
            assert found[name][key]["description"]


def test_what_is_registered_later_is_known_from_then_on():
    values = with_section("dataset", name="mine", shade="dark")
    with pytest.raises(ConfigError, match=r"dataset.name: 'mine' is unknown"):
        parse_pipeline(values)
    datasets.register("mine", lambda place, shade="light": None)
    try:
        assert parse_pipeline(values).dataset.options() == {"shade": "dark"}
        assert "shade" in keys_in_schema("dataset")["mine"]
    finally:
        datasets.unregister("mine")
    with pytest.raises(ConfigError, match=r"dataset.name: 'mine' is unknown"):
        parse_pipeline(values)
    assert "mine" not in keys_in_schema("dataset")


# --- grids ------------------------------------------------------------------------------------

ROWS = [
    {"label": "conv4", "set": {"features.layer": "conv4", "features.levels": []}, "only": ["crop"]},
    {"label": "50 bins"},
    {"label": "fc6", "set": {"features.layer": "fc6"}},
]
COLUMNS = [
    {"label": "crop", "set": {"features.view": "center_crop"}, "paper": {"ZF-5": {"conv4": 81.03}}},
    {"label": "full 392", "set": {"features.scales": 392}, "paper": {"ZF-5": {"fc6": [78.8, 0.5]}}},
]


def with_grid(**changes):
    return {**MINIMAL, "grid": {"rows": ROWS, "columns": COLUMNS} | changes}


def rows_with(**changes):
    return with_grid(rows=[*ROWS, {"label": "fc7"} | changes])


def columns_with(**changes):
    return with_grid(columns=[*COLUMNS, {"label": "warp"} | changes])


def test_a_grid_is_every_row_in_every_column_but_where_a_row_names_its_columns():
    grid = parse_pipeline(with_grid()).grid
    assert [(row.label, column.label) for row, column in grid.cells()] == [
        ("conv4", "crop"),
        ("50 bins", "crop"),
        ("50 bins", "full 392"),
        ("fc6", "crop"),
        ("fc6", "full 392"),
    ]


def test_the_papers_numbers_come_with_or_without_a_deviation():
    crop, full = parse_pipeline(with_grid()).grid.columns
    assert crop.paper == {"ZF-5": {"conv4": (81.03,)}}
    assert full.paper == {"ZF-5": {"fc6": (78.8, 0.5)}}


def test_a_cell_is_the_pipeline_with_what_its_row_and_its_column_set():
    features = {"pooling": "mean", "levels": [6, 3, 2, 1]}
    pipeline = parse_pipeline({**with_grid(), "features": features})
    cells = {
        (row.label, column.label): cell_pipeline(pipeline, row, column)
        for row, column in pipeline.grid.cells()
    }
    conv4 = cells["conv4", "crop"]
    assert conv4.grid is None
    assert (conv4.features.layer, conv4.features.levels) == (("conv4",), ())
    assert (conv4.features.view, conv4.features.pooling) == ("center_crop", "mean")
    assert cells["50 bins", "full 392"].features.levels == (6, 3, 2, 1)
    assert cells["50 bins", "full 392"].features.scales == (392,)
    assert conv4.dataset == pipeline.dataset


def test_a_cell_may_have_another_dataset_and_protocol_than_the_rest():
    pipeline = parse_pipeline(
        rows_with(set={"dataset.name": "voc2007", "protocol.name": "voc2007"})
    )
    row, column = pipeline.grid.rows[-1], pipeline.grid.columns[0]
    cell = cell_pipeline(pipeline, row, column)
    assert (cell.dataset.name, cell.protocol.settings()["choose_C"]) == ("voc2007", "per class")


def test_the_command_line_reaches_every_cell(tmp_path):
    import yaml

    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(with_grid()))
    pipeline = read_pipeline(path, ["protocol.splits=2", "features.weights=mine.pth"])
    for row, column in pipeline.grid.cells():
        cell = cell_pipeline(pipeline, row, column)
        assert cell.protocol.settings()["splits"] == 2
        assert cell.features.weights == "mine.pth"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_grid(colums=[]), r"unknown key 'grid\.colums'; did you mean 'columns'"),
        (rows_with(lable="x"), r"unknown key 'grid\.rows\.3\.lable'; did you mean 'label'"),
        (columns_with(papers={}), r"unknown key 'grid\.columns\.2\.papers'; did you mean 'paper'"),
        (with_grid(rows=[]), "grid.rows: must not be empty"),
        (with_grid(columns=3), "grid.columns: must be a list, got 3"),
        (with_grid(rows=[{"set": {}}]), r"'grid\.rows\.0\.label' is missing"),
        (rows_with(label=""), "grid.rows.3.label: must not be empty"),
        (rows_with(label="conv4"), "grid: two rows are called 'conv4'"),
        (columns_with(label="crop"), "grid: two columns are called 'crop'"),
        (rows_with(only=["corp"]), "grid: no column is called 'corp'; did you mean 'crop'"),
        (rows_with(set=["features.layer"]), "grid.rows.3.set: must be a mapping"),
        (columns_with(paper={"ZF-5": {"conv": 1}}), "grid: no row is called 'conv'; did you mean"),
        (columns_with(paper={"ZF-5": {"fc6": "high"}}), "paper.ZF-5.fc6.0: .*number, got 'high'"),
        (columns_with(paper={"ZF-5": {"fc6": [1, 2, 3]}}), "paper.ZF-5.fc6: .*at most 2"),
        ({**MINIMAL, "grid": 3}, "grid: must be a mapping of keys, got 3"),
    ],
)
def test_a_mistake_in_a_grid_is_one_line_too(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_pipeline(values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.layr": "fc7"}, "unknown key 'features.layr'; did you mean 'layer'"),
        ({"layer": "fc7"}, "unknown key 'layer'"),
        ({"features.": 1}, "set features.: expected section.key=value"),
        ({"features.view": "warp"}, "its row and its column both set features.view"),
        ({"features.levels": 3}, "features.levels: must be a list, got 3"),
    ],
)
def test_a_mistake_in_a_cell_is_one_line_too(changes, message):
    pipeline = parse_pipeline(rows_with(set=changes))
    row, column = pipeline.grid.rows[-1], pipeline.grid.columns[0]
    with pytest.raises(ConfigError, match=message) as caught:
        cell_pipeline(pipeline, row, column)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no mistake
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=10,
    )
)
def test_any_value_in_a_section_gives_a_pipeline_or_a_config_error(value):
    for section in Pipeline.model_fields:
        try:
            parse_pipeline({**MINIMAL, section: value})
        except ConfigError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both outcomes are fine


SHIPPED = sorted((Path(__file__).parent.parent / "pipelines").glob("*.yaml"))
# Those of pre-training have a schema of their own; see tests/pretraining/test_config.py.
PIPELINES = [path for path in SHIPPED if not path.stem.startswith("pretrain-")]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_shipped_pipeline_file_is_valid(path):
    assert read_pipeline(path).protocol.name


@pytest.mark.parametrize("name", ["caltech101", "voc2007", "paper-caltech101", "paper-voc2007"])
def test_pipelines_meant_to_be_cited_name_their_precision(name):
    (path,) = (path for path in PIPELINES if path.stem == name)
    features = read_pipeline(path).features
    assert (features.precision, *map(bool, (features.levels, features.scales))) == (
        "float32",
        True,
        True,
    )


@needs("pydantic", "2.12", "the same schema is written in other words")
def test_the_exported_json_schema_is_current():
    exported = Path(__file__).parent.parent / "pipelines" / "pipeline.schema.json"
    assert json.loads(exported.read_text()) == Pipeline.model_json_schema(), "run: make schema"


def test_the_largest_C_is_the_solvers():
    from spptransfer.svm._solver import LARGEST_C

    assert parse_pipeline(with_section("classifier", C=LARGEST_C)).classifier.C == (LARGEST_C,)
    with pytest.raises(ConfigError):
        parse_pipeline(with_section("classifier", C=1.001 * LARGEST_C))
