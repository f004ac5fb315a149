"""Jobs done where macOS and Windows lack what Linux has: ``python other_machines.py JOB FOLDER``.

Other distributions have their own ways on those systems: they are imported first, and see this one
as it is. What is hidden is hidden from this package.
"""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import os
import signal
import sys
from pathlib import Path

OTHERS = (
    *("torch", "sklearn.linear_model", "sklearn.model_selection", "scipy.linalg", "h5py", "joblib"),
    *("filelock", "PIL.Image", "pydantic", "typer", "jinja2", "yaml", "tqdm", "pooch", "requests"),
    *("safetensors.torch", "psutil", "threadpoolctl", "onnxruntime", "onnx", "openvino"),
    *("multiprocessing.pool", "concurrent.futures.process", "asyncio", "email.message"),
)
HIDDEN = {
    os: (
        *("sched_getaffinity", "sched_setaffinity", "pread", "pwrite", "preadv", "pwritev"),
        *("posix_fallocate", "posix_fadvise", "fork", "forkpty", "memfd_create", "fdatasync"),
        *("sysconf", "sysconf_names", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW"),
        *("getuid", "geteuid", "sendfile", "copy_file_range", "uname", "mkfifo", "killpg"),
        "setsid",
    ),
    signal: (
        *("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGALRM", "SIGTSTP"),
        *("SIGCONT", "SIGXFSZ", "SIGCHLD", "pthread_sigmask", "pthread_kill", "sigwait", "alarm"),
    ),
    mmap: tuple(name for name in dir(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))),
}
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "syslog")
FORBIDDEN = set('<>:"|?*\\')  # in names of files on Windows


class Status:
    """What a file system says of a file, without blocks."""

    def __init__(self, status: os.stat_result) -> None:
        self._status = status

    def __getattr__(self, name: str):
        if name in ("st_blocks", "st_blksize", "st_rdev"):
            raise AttributeError(name)
        return getattr(self._status, name)

    def __getitem__(self, position: int):
        return self._status[position]


def hide() -> None:
    """Take from this process what other systems lack, and have it refuse what Windows refuses."""
    for name in OTHERS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    for module, names in HIDDEN.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None
    for name in ("stat", "lstat", "fstat"):
        setattr(os, name, without_blocks(getattr(os, name)))
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, refused_where_open(getattr(os, name)))
    os.open = refused_for_folders(os.open)


def without_blocks(stat):
    return lambda *given, **options: Status(stat(*given, **options))


def refused_where_open(change):
    """On Windows a file that is open can neither be renamed or removed nor replaced."""

    def changed(*paths, **options):
        if not options:
            for path in map(os.path.realpath, paths):
                if path in open_files():
                    raise PermissionError(13, "The process cannot access the file", path)
        return change(*paths, **options)

    return changed


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    descriptors = [os.readlink(entry) for entry in folder.iterdir() if entry.is_symlink()]
    mapped = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    return {*descriptors, *(line.split(maxsplit=5)[-1] for line in mapped)}


def refused_for_folders(open_):
    def opened(path, flags, *given, **options):
        # With a folder's descriptor, it is the standard library's own way of Linux.
        if not options and isinstance(path, str | os.PathLike) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return open_(path, flags, *given, **options)

    return opened


def demo(folder: Path) -> None:
    """Run the demo by its command, in small."""
    from spptransfer.cli import main

    small = ("features.scales=[48]", "classifier.C=[1]", "protocol.splits=1", "protocol.folds=0")
    options = [word for value in small for word in ("--set", value)]
    assert main(["run", "demo", "--quiet", *options]) == 0
    names = [path.name for path in folder.rglob("*")]
    assert any(name.endswith(".h5") for name in names)
    assert not [name for name in names if set(name) & FORBIDDEN]


def resume(folder: Path) -> None:
    """Interrupt an extraction and go on: byte for byte what an uninterrupted one writes."""
    from extraction_cases import StopAfter
    from small_projects import draw_folder

    from spptransfer.backbones import BackboneRef
    from spptransfer.datasets.folder import read_folder
    from spptransfer.errors import SPPTransferError
    from spptransfer.extraction import extract
    from spptransfer.runtimes import ComputeOptions
    from spptransfer.specify import feature_spec

    data = read_folder(draw_folder(folder / "images", per_class=100))
    mini = BackboneRef("spp-mini", "embedded")
    spec = feature_spec(mini, levels=[2, 1], scales=[40], storage="float16")
    options = ComputeOptions(device="cpu", threads=2)
    stopped, whole = folder / "stopped.h5", folder / "whole.h5"
    try:
        extract(data, [spec], [stopped], mini, options, stop=StopAfter(1))
    except SPPTransferError:
        assert not stopped.exists()
        assert list(folder.glob("stopped*.partial"))
    else:
        raise AssertionError("it was not interrupted")
    for path in (stopped, whole):
        assert not extract(data, [spec], [path], mini, options)[0].failures
    assert stopped.read_bytes() == whole.read_bytes()
    assert not list(folder.glob("*.partial"))


def fit(folder: Path) -> None:
    """Features and a linear SVM as scikit-learn's users call them."""
    from small_projects import draw_folder

    from spptransfer import LinearSVM, SPPFeatures

    paths = sorted(draw_folder(folder / "images").rglob("*.png"))
    features = SPPFeatures("spp-mini", weights="embedded", levels=[2, 1], scales=[40])
    X = features.fit_transform(paths)
    y = [path.parent.name for path in paths]
    assert LinearSVM().fit(X, y).score(X, y) > 0.9


if __name__ == "__main__":
    hide()
    {"demo": demo, "resume": resume, "fit": fit}[sys.argv[1]](Path(sys.argv[2]))
