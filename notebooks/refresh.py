"""Execute the notebooks on freshly drawn images and write them back with their outputs.

Run it after a change that shows in them: ``python notebooks/refresh.py``.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = tuple(sorted(FOLDER.glob("*.ipynb")))


def execute(notebook: Path, work: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a working folder; its file stays as it is."""
    content = nbformat.read(notebook, as_version=4)
    metadata = copy.deepcopy(content.metadata)
    client = NotebookClient(
        content,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env={**os.environ, "SPPTRANSFER_NOTEBOOK_DIR": str(work)})
    content.metadata = metadata
    return content


def without_warnings(content: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out the error stream: what libraries say there is about one machine."""
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return content


def main() -> None:
    """Refresh both notebooks on one set of images."""
    with tempfile.TemporaryDirectory() as work:
        for notebook in NOTEBOOKS:
            nbformat.write(without_warnings(execute(notebook, Path(work))), notebook)


if __name__ == "__main__":
    main()
