from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from cache_files import CHANNELS, make_cache, make_ids, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.cache import FeatureCache, Labels
from spptransfer.cache.layout import Block
from spptransfer.errors import CacheError, ConfigError, SpecMismatchError

SPEC = make_spec(levels=(6, 4), scales=(48, 64))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "a.h5"
    return (path, *make_cache(path, 30, SPEC, failed=[3, 17]))


def brute_force(rows, features, ids, levels, scales, combine):
    """The slow obvious path, row by row with torch's own pooling."""
    matrix = []
    for id in ids:
        position = rows.ids.index(id)
        vectors = []
        for scale in scales:
            parts = []
            for level in levels:
                source = min(finer for finer in (6, 4) if finer % level == 0)
                grid = features[Block("spp", scale, source, CHANNELS)][position]
                grid = torch.from_numpy(grid.reshape(1, CHANNELS, source, source))
                pooled = torch.nn.functional.adaptive_max_pool2d(grid, level)
                parts.append(pooled.numpy().ravel())
            vectors.append(np.concatenate(parts))
        join = {"concat": np.concatenate, "mean": np.mean, "max": np.max}[combine]
        matrix.append(join(vectors) if combine == "concat" else join(vectors, axis=0))
    return np.array(matrix)


levels = st.lists(st.sampled_from([6, 4, 3, 2, 1]), min_size=1, unique=True)
scales = st.lists(st.sampled_from([48, 64]), min_size=1, unique=True)
good = [id for i, id in enumerate(make_ids(30)) if i not in (3, 17)]


@given(
    st.lists(st.sampled_from(good), min_size=1, max_size=12),
    levels,
    scales,
    st.sampled_from(["concat", "mean", "max"]),
)
@settings(max_examples=25, deadline=None)
def test_a_matrix_is_what_pooling_row_by_row_gives(stored, ids, levels, scales, combine):
    path, rows, features = stored
    cache = FeatureCache.open(path)
    matrix = cache.matrix(ids, levels=levels, scales=scales, combine=combine)
    expected = brute_force(rows, features, ids, levels, scales, combine)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-7)
    view = cache.view(ids, levels=levels, scales=scales, combine=combine)
    np.testing.assert_array_equal(np.asarray(view), matrix)
    columns = cache.columns(levels, scales, combine)
    assert columns[-1].stop == matrix.shape[1]
    assert [column.level for column in columns[: len(levels)]] == levels


@pytest.fixture(scope="module")
def of_several_layers(tmp_path_factory):
    spec = dataclasses.replace(SPEC, layers=("spp", "fc6", "conv4"), vectors=("fc6",))
    path = tmp_path_factory.mktemp("cache") / "a.h5"
    make_cache(path, 8, spec, channels={"conv4": 5, "fc6": 7, "spp": 3}, failed=[3])
    return FeatureCache.open(path)


@given(
    st.lists(st.sampled_from(["spp", "fc6", "conv4"]), min_size=1, unique=True),
    levels,
    scales,
    st.sampled_from(["concat", "mean", "max"]),
)
@settings(max_examples=25, deadline=None)
def test_layers_stand_side_by_side_in_the_order_asked_for(
    of_several_layers, layers, levels, scales, combine
):
    cache, given = of_several_layers, {"scales": scales, "combine": combine}
    of_map = {"spp": levels, "conv4": levels, "fc6": None}
    alone = [cache.matrix(layers=[name], levels=of_map[name], **given) for name in layers]
    wanted = None if layers == ["fc6"] else levels
    found = cache.matrix(layers=layers, levels=wanted, **given)
    np.testing.assert_array_equal(found, np.hstack(alone))
    columns = cache.columns(wanted, layers=layers, **given)
    assert list(dict.fromkeys(column.layer for column in columns)) == layers
    assert columns[-1].stop == found.shape[1]


def test_by_default_all_layers_are_read_as_they_are_stored(of_several_layers):
    cache = of_several_layers
    stored = np.hstack([cache.read(block, slice(None)) for block in cache.blocks])
    np.testing.assert_array_equal(cache.matrix(), np.delete(stored, 3, axis=0))
    assert [block.name for block in cache.blocks[3:7]] == [
        "features/conv4/scale_64/level_4",
        "features/fc6/scale_48/vector",
        "features/fc6/scale_64/vector",
        "features/spp/scale_48/level_6",
    ]
    assert "squeezenet1_1 conv4 + fc6 + spp, " in repr(cache)
    assert "5 + 7 + 3 channels" in repr(cache)


@pytest.mark.parametrize("layer", ["features.12", "a/b", "50%", "größe 1"])
def test_a_layer_may_have_any_name(tmp_path, layer):
    _, features = make_cache(tmp_path / "a.h5", 5, make_spec(layers=(layer,)))
    found = FeatureCache.open(tmp_path / "a.h5").matrix()
    np.testing.assert_array_equal(found, next(iter(features.values())))


def test_by_default_a_matrix_has_all_rows_with_features_and_all_that_is_stored(stored):
    path, rows, features = stored
    cache = FeatureCache.open(path)
    kept = [i for i in range(30) if i not in (3, 17)]
    stacked = np.concatenate([features[block][kept] for block in cache.blocks], axis=1)
    np.testing.assert_array_equal(cache.matrix(), stacked)
    assert cache.ids == [rows.ids[i] for i in kept]
    assert len(cache) == 28
    assert cache.count == 30


def test_columns_name_scale_and_level_of_every_number(stored):
    cache = FeatureCache.open(stored[0])
    columns = cache.columns(levels=[2, 1], scales=[64, 48])
    assert [dataclasses.astuple(column) for column in columns] == [
        ("spp", 64, 2, 0, 12),
        ("spp", 64, 1, 12, 15),
        ("spp", 48, 2, 15, 27),
        ("spp", 48, 1, 27, 30),
    ]
    assert [column.width for column in columns] == [12, 3, 12, 3]
    assert [column.scale for column in cache.columns([2, 1], combine="max")] == [None, None]


def test_labels_follow_ids_not_positions(stored):
    cache = FeatureCache.open(stored[0])
    some = [good[9], good[2], good[2]]
    expected = [["ant", "bee", "cat"][make_ids(30).index(id) % 3] for id in some]
    assert cache.labels(some).tolist() == expected
    assert len(cache.labels()) == len(cache)


def test_a_failed_row_is_no_row_and_says_why(stored):
    path, rows, _ = stored
    cache = FeatureCache.open(path)
    assert dict(cache.failures) == {rows.ids[3]: "reason 3", rows.ids[17]: "reason 17"}
    assert rows.ids[3] not in cache
    assert rows.ids[4] in cache
    assert "nothing" not in cache
    for read in (cache.matrix, cache.labels, cache.view):
        with pytest.raises(CacheError, match="has no features: reason 3"):
            read([rows.ids[4], rows.ids[3]])
        with pytest.raises(CacheError, match="has no row 'nothing'"):
            read(["nothing"])


def test_digests_are_those_of_rows_with_features(stored):
    path, rows, _ = stored
    digests = FeatureCache.open(path).digests()
    assert list(digests) == good
    assert digests[good[5]] == rows.digest[rows.ids.index(good[5])].decode()


def test_the_table_of_rows_comes_back_whole(stored):
    path, rows, _ = stored
    found = FeatureCache.open(path).rows_at(slice(None))
    for name, column in vars(rows).items():
        np.testing.assert_array_equal(getattr(found, name), column)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"levels": [5]}, r"level 5 does not follow from the stored levels \[6, 4\]"),
        ({"scales": [224]}, r"scale 224 is not stored; allowed: \[48, 64\]"),
        ({"layers": ["fc6"]}, r"layer 'fc6' is not stored; allowed: \['spp'\]"),
        ({"combine": "maximum"}, "did you mean 'max'"),
    ],
)
def test_what_is_not_stored_is_refused_by_name(stored, choice, message):
    cache = FeatureCache.open(stored[0])
    for read in (cache.matrix, cache.view, cache.columns):
        with pytest.raises(CacheError, match=message):
            read(**choice)


@pytest.mark.parametrize("choice", [{"levels": []}, {"levels": [2, 2]}, {"scales": [0]}])
def test_a_choice_that_makes_no_sense_is_refused(stored, choice):
    with pytest.raises(ConfigError):
        FeatureCache.open(stored[0]).matrix(**choice)


def test_vectors_have_no_levels(tmp_path):
    spec = make_spec(layers=("fc6",), levels=())
    _, features = make_cache(tmp_path / "a.h5", 5, spec, channels=7)
    cache = FeatureCache.open(tmp_path / "a.h5")
    np.testing.assert_array_equal(cache.matrix(), next(iter(features.values())))
    assert [(c.level, c.stop) for c in cache.columns()] == [(None, 7)]
    with pytest.raises(CacheError, match="layer 'fc6' is a vector"):
        cache.matrix(levels=[1])


def test_no_ids_give_a_matrix_without_rows(stored):
    cache = FeatureCache.open(stored[0])
    assert cache.matrix([]).shape == (0, cache.columns()[-1].stop)
    assert cache.matrix([], levels=[2, 1], scales=[64], combine="mean").shape == (0, 15)
    assert cache.labels([]).shape == (0,)


def test_float16_is_read_as_float32_or_as_it_is(tmp_path):
    spec = make_spec(storage="float16")
    _, features = make_cache(tmp_path / "a.h5", 5, spec)
    cache = FeatureCache.open(tmp_path / "a.h5")
    stored = next(iter(features.values()))
    assert cache.matrix().dtype == np.float32
    np.testing.assert_array_equal(cache.matrix(), stored.astype(np.float32))
    assert cache.matrix(dtype="float16").dtype == np.float16
    np.testing.assert_array_equal(cache.matrix(levels=[4], dtype="float16"), stored)


def test_another_spec_is_refused_with_the_field_and_both_values(stored):
    wanted = dataclasses.replace(SPEC, view="warp", weights_sha256="11")
    with pytest.raises(SpecMismatchError) as caught:
        FeatureCache.open(stored[0], wanted)
    assert "weights_sha256: 00 is not 11; view: full is not warp" in str(caught.value)


def test_a_spec_that_the_rows_determine_is_accepted(stored):
    assert FeatureCache.open(stored[0], make_spec(levels=(3, 2, 1), scales=(64,)))


def test_iterating_in_blocks_gives_the_matrix(stored):
    cache = FeatureCache.open(stored[0])
    blocks = list(cache.iter_blocks(8, levels=[3]))
    assert [len(ids) for ids, _ in blocks] == [8, 8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([X for _, X in blocks]), cache.matrix(levels=[3]))
    assert [id for ids, _ in blocks for id in ids] == cache.ids


def test_a_pickle_does_not_open_another_cache_put_in_its_place(tmp_path):
    make_cache(tmp_path / "a.h5")
    data = pickle.dumps(FeatureCache.open(tmp_path / "a.h5"))
    make_cache(tmp_path / "a.h5", seed=1)
    with pytest.raises(CacheError, match="was replaced"):
        pickle.loads(data)


def test_a_cache_that_is_open_outlives_its_replacement(tmp_path):
    _, features = make_cache(tmp_path / "a.h5")
    cache = FeatureCache.open(tmp_path / "a.h5")
    make_cache(tmp_path / "a.h5", seed=1)
    np.testing.assert_array_equal(cache.matrix(), next(iter(features.values())))


def test_a_label_of_no_class_is_damage(tmp_path):
    labels = Labels(("a",), np.array([0, 0, 5], dtype=np.int32))
    make_cache(tmp_path / "a.h5", 3, labels=labels)
    with pytest.raises(CacheError, match="a label is of no class"):
        FeatureCache.open(tmp_path / "a.h5").labels()


def test_repr_says_what_is_in_the_cache(stored):
    assert repr(FeatureCache.open(stored[0])) == (
        "<FeatureCache 'a.h5': 28 rows of made up, failed=2; "
        "squeezenet1_1 spp, scales=[48, 64], levels=[6, 4] (and 3, 2, 1), 3 channels, float32>"
    )


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"levels": (6,)}, "levels=[6] (and 3, 2, 1), "),
        ({"levels": (6, 3, 2, 1), "pooling": "mean"}, "levels=[6, 3, 2, 1], "),
        ({"levels": (1,)}, "levels=[1], "),
        ({"levels": (), "layers": ("fc6",)}, "scales=[64], 3 channels"),
    ],
)
def test_repr_says_which_levels_follow_from_the_stored_ones(tmp_path, changes, shown):
    make_cache(tmp_path / "a.h5", 2, make_spec(**changes))
    assert shown in repr(FeatureCache.open(tmp_path / "a.h5"))


@pytest.mark.parametrize("name", ["two words.h5", "naïve 图像.h5", "line\nbreak.h5", "n" * 200])
def test_a_cache_may_have_any_name(tmp_path, name):
    make_cache(tmp_path / name)
    assert len(FeatureCache.open(tmp_path / name)) == 10


def test_rows_in_any_order_are_those_of_the_matrix(tmp_path):
    _, features = make_cache(tmp_path / "a.h5", 900, make_spec(levels=(2,)))
    cache, (values,) = FeatureCache.open(tmp_path / "a.h5"), features.values()
    generator = np.random.default_rng(0)
    chosen = [generator.permutation(900)[:count] for count in (900, 40, 2)]
    for positions in [*chosen, np.arange(899), np.delete(np.arange(900), 450)]:
        np.testing.assert_array_equal(cache.read(cache.blocks[0], positions), values[positions])
        np.testing.assert_array_equal(cache.view()[positions], values[positions])
        assert cache.ids_at(positions) == [make_ids(900)[i] for i in positions]
        assert cache.rows_at(positions).stamp[:, 0].tolist() == positions.tolist()


def test_the_hash_of_a_cache_tells_its_content(tmp_path):
    hashes = []
    for seed in (0, 0, 1):
        make_cache(tmp_path / "a.h5", seed=seed)
        hashes.append(FeatureCache.open(tmp_path / "a.h5").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_ids_may_be_of_any_kind(tmp_path):
    ids = ["a b", "图像.jpg", "line\nbreak", "x" * 300, "byte \udcff", "../up", " "]
    make_cache(tmp_path / "a.h5", ids=ids)
    cache = FeatureCache.open(tmp_path / "a.h5")
    assert cache.ids == ids
    assert cache.matrix(ids[::-1]).shape[0] == len(ids)
