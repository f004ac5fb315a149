from __future__ import annotations

import zipfile

import numpy as np
import pytest
from image_files import encode, picture

from spptransfer.errors import DatasetError, ImageError
from spptransfer.pretraining.evaluation_data import LabelledFiles
from spptransfer.pretraining.source import FolderSource


def test_labelled_files_are_the_same_from_a_folder_and_a_zip(tmp_path):
    folder = tmp_path / "data"
    for name in ("val/bee/2.png", "val/ant/deep/1.png", "val/bee/1.png", "val/stray.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture(20, 30, len(name))))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder).as_posix())
    unpacked = LabelledFiles(FolderSource(folder), "val")
    zipped = LabelledFiles.open(str(tmp_path / "data.zip"), "val")
    assert unpacked.classes == zipped.classes == ("ant", "bee")
    assert (
        unpacked.names == zipped.names == ("val/ant/deep/1.png", "val/bee/1.png", "val/bee/2.png")
    )
    for position, label in enumerate((0, 1, 1)):
        assert unpacked[position][1] == zipped[position][1] == label
        np.testing.assert_array_equal(unpacked[position][0], zipped[position][0])
    with pytest.raises(DatasetError, match="no images in class folders of 'test'"):
        LabelledFiles.open(str(folder), "test")
    (folder / "val/bee/2.png").write_bytes(b"")
    with pytest.raises(ImageError):
        unpacked[2]
