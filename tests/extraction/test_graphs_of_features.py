"""Features by graphs are those without, on a CPU with stand-ins and on a GPU."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from cache_files import make_spec
from extraction_cases import SEVERAL, SPEC, backbone, make_dataset, mini, run
from graph_cases import OFTEN, assert_same, batch, fetched, out_of_memory, work_at_once
from image_files import encode, picture

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.extraction import compute
from spptransfer.extraction import graphs as module
from spptransfer.extraction.capturing import CudaCapturer
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.division import GPU_LANES
from spptransfer.extraction.graphs import Graphs
from spptransfer.extraction.transfers import transfers_to

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
pytestmark = pytest.mark.usefixtures("soon")


def with_graphs(network, specs, world):
    computer = FeatureComputer(network, specs)
    computer.graphs = Graphs(fetched, world.open)
    return computer


def views_of(height, width, seed=0, count=2):
    return batch(seed, (count, height, width, 3))


def test_a_cpu_has_no_graphs():
    assert FeatureComputer(backbone(), SPEC).graphs is None


def test_what_graphs_read_stays_when_the_backbone_is_moved_elsewhere(monkeypatch):
    place = compute.place
    monkeypatch.setattr(compute, "choose_device", lambda *_: torch.device("cuda:0"))
    monkeypatch.setattr(
        compute, "place", lambda network, _, *how: place(network, torch.device("cpu"), *how)
    )
    network = backbones.load("squeezenet1_1", "random", layer=SPEC.layer)
    memory = network.trunk[0].bias.detach().numpy().copy()
    network.trunk[0].bias.data = torch.from_numpy(memory)
    alive = weakref.ref(memory)
    computer = FeatureComputer(network, SPEC, "cuda")
    del memory
    network.double()  # as another device: all tensors are others
    assert alive() is not None
    del computer
    gc.collect()
    assert alive() is None


def test_features_by_graphs_are_those_without(world):
    plain, graphed = FeatureComputer(backbone(), SPEC), with_graphs(backbone(), SPEC, world)
    for seed in range(OFTEN + 3):
        for height, width, count in ((48, 60, 2), (48, 60, 3), (60, 48, 2)):
            views = views_of(height, width, seed, count)
            assert_same([graphed(views)], [plain(views)])
    assert graphed.graphs.held == 3


def test_specs_wanted_together_are_a_graph_of_their_own(world):
    specs = list(SEVERAL.values())
    plain, graphed = FeatureComputer(mini(), specs), with_graphs(mini(), specs, world)
    for seed in range(OFTEN + 2):
        for wanted in ([0], [0, 1, 5], [6, 3]):
            views = views_of(64, 80, seed)
            assert_same(graphed.compute(views, wanted), plain.compute(views, wanted))
    assert graphed.graphs.held == 3


def test_a_view_computed_in_strips_is_never_captured(world):
    graphed = with_graphs(backbone(), SPEC, world)
    graphed.strip_pixels = 48 * 500
    for seed in range(OFTEN + 1):
        graphed(views_of(48, 1500, seed, 1))
    assert world.attempts == 0
    for seed in range(OFTEN):
        graphed(views_of(48, 500, seed, 1))
    assert world.attempts == 1


@pytest.mark.parametrize("largest", [2, 1])
def test_a_batch_that_does_not_fit_is_still_halved(tmp_path, monkeypatch, world, largest):
    files = {f"{i:02}.png": encode(picture(48, 48, i)) for i in range(24)}
    dataset = make_dataset(tmp_path / "images", files)
    options = {"part_rows": 4, "jobs": 2, "engine": "threads"}
    run(dataset, tmp_path / "a.h5", **options)
    prepare, stored = FeatureComputer.__init__, FeatureComputer._stored
    proof, sizes = 2 + module.TIMINGS, []

    def with_fakes(self, *arguments, **others):
        prepare(self, *arguments, **others)
        self.graphs = Graphs(fetched, world.open)

    def in_little_memory(self, pixels, specs):
        sizes.append(len(pixels))
        if world.replays > proof and len(pixels) > largest:
            raise out_of_memory()
        return stored(self, pixels, specs)

    monkeypatch.setattr(FeatureComputer, "__init__", with_fakes)
    monkeypatch.setattr(FeatureComputer, "_stored", in_little_memory)
    report = run(dataset, tmp_path / "b.h5", **options)
    assert not report.failures
    assert world.replays > proof
    assert not world.kept
    assert min(sizes) == largest
    found, expected = (FeatureCache.open(tmp_path / f"{name}.h5").matrix() for name in "ba")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def on_gpu(precision="float32", storage="float32"):
    spec = make_spec(
        backbone="resnet18", levels=(3, 2), scales=(64,), precision=precision, storage=storage
    )
    return FeatureComputer(backbones.load("resnet18", "random"), spec, "cuda")


@pytest.fixture
def whatever_the_time(monkeypatch):
    """On a device that is shared a replay may seem slow."""
    monkeypatch.setattr(module, "WORTH", math.inf)


def by_both_ways(computer, views):
    """With graphs and without."""
    graphs, computer.graphs = computer.graphs, None
    try:
        expected = computer(views)
    finally:
        computer.graphs = graphs
    return computer(views), expected


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_graphs_give_the_same_bits(precision, storage):
    computer = on_gpu(precision, storage)
    for seed in range(2 * OFTEN):
        for shape in ((64, 80, 1), (64, 80, 4), (80, 64, 4)):
            found, expected = by_both_ways(computer, views_of(shape[0], shape[1], seed, shape[2]))
            assert_same([found], [expected])
    assert computer.graphs.held == 3


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_graphs_of_several_threads_do_not_mix():
    computer = on_gpu()
    sizes = ((64, 80), (80, 64), (64, 64))
    expected = {}
    graphs, computer.graphs = computer.graphs, None
    for seed in range(30):
        expected[seed] = computer(views_of(*sizes[seed % 3], seed, 4))
    computer.graphs = graphs

    def work():
        for seed in range(30):
            assert_same([computer(views_of(*sizes[seed % 3], seed, 4))], [expected[seed]])

    for _ in range(3):  # threads of their own each time, as every part has
        work_at_once(*[work] * 4)
    assert 3 <= graphs.held <= 3 * GPU_LANES


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_graphs_that_take_the_place_of_others_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(module, "GRAPHS_PER_LANE", 2)
    monkeypatch.setattr(module, "OFTEN_AGAIN", OFTEN)
    computer = on_gpu()
    for _ in range(4):
        for width in (64, 72, 80, 88):
            for seed in range(OFTEN + 1):
                found, expected = by_both_ways(computer, views_of(64, width, seed, 3))
                assert_same([found], [expected])
    assert computer.graphs.held == 2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_a_failed_capture_leaves_everything_usable():
    device = torch.device("cuda")
    graphs = Graphs(transfers_to(device), lambda: CudaCapturer(device))

    def waits(pixels):
        return [{1: pixels.float() * float(pixels.sum().item() > 0)}]

    for seed in range(OFTEN + 2):
        found = graphs(batch(seed), waits, "waits")
        assert_same(found, [{1: batch(seed).astype(np.float32)}])
    assert graphs.held == 0
    torch.cuda.empty_cache()  # an error as long as torch takes a capture to be under way
    for seed in range(OFTEN + 2):
        found = graphs(batch(seed), lambda pixels: [{1: pixels.float() * 2}], "doubles")
        assert_same(found, [{1: batch(seed) * np.float32(2)}])
    assert graphs.held == 1


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("whatever_the_time")
def test_on_a_gpu_memory_of_dropped_graphs_is_there_for_others():
    computer = on_gpu()
    for seed in range(OFTEN + 1):
        computer(views_of(224, 224, seed, 16))
    assert computer.graphs.held == 1
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.raises(torch.OutOfMemoryError):
        computer.graphs(batch(), no_memory, "large")
    assert computer.graphs.held == 0
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before


def no_memory(pixels):
    raise out_of_memory()
