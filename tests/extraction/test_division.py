"""Who makes the parts, by what is asked for and what there is."""

from __future__ import annotations

import pytest

from spptransfer.affinity import count_processors
from spptransfer.errors import ConfigError
from spptransfer.extraction.division import ENGINES, GPU_LANES, check_engine, divide

HERE = count_processors()


@pytest.mark.parametrize(
    ("engine", "jobs", "on_gpu", "found", "readers", "computers", "is_here"),
    [
        ("threads", None, False, "threads", HERE, HERE, True),
        ("threads", 5, False, "threads", 5, 5, True),
        ("processes", 3, False, "processes", 3, 3, False),
        ("dask", 3, False, "dask", 3, 3, False),
        ("auto", None, False, "threads", HERE, HERE, True),
        ("auto", 1, False, "threads", 1, 1, True),
        ("auto", 2, False, "processes", 2, 2, False),
        ("threads", 16, True, "threads", 16, GPU_LANES, True),
        ("threads", 1, True, "threads", 1, 1, True),
        ("processes", 16, True, "processes", 16, GPU_LANES, True),
        ("auto", 16, True, "threads", 16, GPU_LANES, True),
        ("dask", 16, True, "dask", 16, GPU_LANES, False),
    ],
)
def test_who_makes_the_parts(engine, jobs, on_gpu, found, readers, computers, is_here):
    division = divide(engine, jobs, "torch", on_gpu=on_gpu)
    assert (division.engine, division.readers, division.computers) == (found, readers, computers)
    assert (division.on_gpu, division.is_here) == (on_gpu, is_here)
    assert division.jobs == (jobs or HERE)


def test_a_gpu_gets_larger_parts_unless_their_size_is_given():
    on_cpu, on_gpu = (divide("threads", 1, "torch", on_gpu=there) for there in (False, True))
    assert on_cpu.part_rows < on_gpu.part_rows
    for there in (False, True):
        assert divide("threads", 1, "torch", on_gpu=there, part_rows=7).part_rows == 7


def test_who_computes_in_threads_of_its_own_gets_a_reader_more_where_those_fill_the_machine():
    for jobs in (1, HERE, HERE + 1):
        more = divide("threads", jobs, "openvino", on_gpu=False).readers - jobs
        assert more == (jobs == HERE > 1)
        assert divide("processes", jobs, "openvino", on_gpu=False).readers == jobs


def test_an_unknown_engine_is_named_with_those_that_there_are():
    assert [check_engine(name) for name in ENGINES] == list(ENGINES)
    with pytest.raises(ConfigError, match="engine: 'thread' is unknown; did you mean 'threads'"):
        check_engine("thread")
