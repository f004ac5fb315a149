"""Labelled images of a split, read from a folder or a ZIP file as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spptransfer.images import decode
from spptransfer.pretraining.evaluation_views import Pixels
from spptransfer.pretraining.source import Source, labelled, open_source


class LabelledFiles:
    """Images in class folders, decoded whenever they are asked for.

    Parameters
    ----------
    source : Source
        Where the files lie.
    folder : str
        Folder of the split inside it, which holds one folder per class; ``""`` is the root.

    Attributes
    ----------
    names : tuple of str
        Files of the source, sorted.
    classes : tuple of str
        Names of the class folders, sorted.

    Raises
    ------
    DatasetError
        If there are no images in class folders.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from spptransfer.pretraining.source import FolderSource
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("ant", "bee"):
    ...         (Path(root) / "val" / name).mkdir(parents=True)
    ...         Image.new("RGB", (8, 6)).save(Path(root) / "val" / name / "1.png")
    ...     files = LabelledFiles(FolderSource(Path(root)), "val")
    ...     image, label = files[1]
    >>> files.classes, image.shape, label
    (('ant', 'bee'), (6, 8, 3), 1)
    """

    def __init__(self, source: Source, folder: str) -> None:
        names, of_class = labelled(source, folder)
        self._source = source
        self.names = tuple(names)
        self.classes: Sequence[str] = tuple(sorted(set(of_class)))
        number = {name: position for position, name in enumerate(self.classes)}
        self._labels = [number[label] for label in of_class]

    @classmethod
    def open(cls, root: str, split: str) -> LabelledFiles:
        """Open a split of a folder or ZIP file; see `spptransfer.pretraining.source`."""
        return cls(open_source(root), split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> tuple[Pixels, int]:
        """Upright RGB image, uint8 of shape (H, W, 3), and index of its class.

        Raises
        ------
        ImageError
            If the file cannot be read or decoded.
        """
        image = decode(self._source.read(self.names[position]))
        return np.asarray(image), self._labels[position]
