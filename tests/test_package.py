from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import python

import spptransfer
from spptransfer import errors

ROOT = Path(spptransfer.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(ROOT)], "spptransfer.")
    if not module.name.endswith(("__main__", "_version"))
)


def loaded_after(code: str) -> set[str]:
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    return set(python(code).splitlines()[-1].split())


# What is to be computed and with what is told without computing.
LOOKING = """
from spptransfer import backbones, datasets, runtimes, specify
datasets.status()
assert len([backbones.describe(name) for name in backbones.names()]) > 20
backbones.BackboneRef("vgg16", "imagenet").path()
specify.feature_spec(backbones.BackboneRef("spp-mini", "embedded"))
for name in ("auto", *runtimes.RUNTIMES):
    try:
        runtimes.check_options(runtimes.ComputeOptions(runtime=name), "float32")
    except ValueError:
        pass
    runtimes.describe_runtime(name)
"""
HELPING = """
from spptransfer.cli import main
for line in ("--help", "--version", "run --help", "cache verify --help", "frobnicate"):
    main(line.split())
"""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import spptransfer", {"torch", "sklearn", "numpy", "h5py", "PIL", "typer"}),
        ("from spptransfer import FeatureCache", {"torch", "sklearn", "typer"}),
        ("from spptransfer import LinearSVM, PyramidNormalizer", {"torch", "h5py", "typer"}),
        ("from spptransfer import SPPFeatures", {"torch", "typer"}),
        (
            "import spptransfer.experiment",
            {"torch", "sklearn", "scipy", "typer", "matplotlib", "jinja2"},
        ),
        ("from spptransfer import metrics", {"torch", "h5py", "typer"}),
        ("import spptransfer.config", {"torch", "sklearn", "pooch"}),
        (LOOKING, {"torch", "sklearn", "openvino", "onnxruntime", "onnx"}),
        (HELPING, {"torch", "sklearn", "numpy", "h5py", "PIL", "yaml", "scipy", "pandas"}),
        ("from spptransfer.cli import main; main(['backbones'])", {"torch", "timm"}),
        (
            "from spptransfer import SPPFeatures; SPPFeatures('spp-mini').fit()",
            {"timm", "torchvision", "huggingface_hub", "typer"},
        ),
        ("from spptransfer.cli import main; main(['datasets'])", {"torch"}),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(code, absent):
    assert not absent & loaded_after(code)


@pytest.mark.parametrize("name", spptransfer.__all__)
def test_everything_public_is_there_and_listed(name):
    assert getattr(spptransfer, name) is not None
    assert name in dir(spptransfer)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = spptransfer.nope


def test_the_version_is_that_of_the_installed_package():
    assert spptransfer.__version__ == importlib.metadata.version("spptransfer")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert all(hasattr(module, public) for public in getattr(module, "__all__", ()))


ERRORS = [
    value
    for value in vars(errors).values()
    if getattr(value, "__module__", "") == errors.__name__ and isinstance(value, type)
]


@pytest.mark.parametrize("error", ERRORS)
def test_every_user_error_is_of_one_family_and_survives_a_pickle(error):
    assert issubclass(error, errors.SPPTransferError)
    again = pickle.loads(pickle.dumps(error("what is wrong")))
    assert (type(again), str(again)) == (error, "what is wrong")


def test_a_wrong_value_is_a_value_error_to_scikit_learn():
    assert issubclass(errors.ConfigError, ValueError)


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "spptransfer", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"spptransfer {spptransfer.__version__}\n")
