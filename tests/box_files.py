"""The same images and boxes in VOC's, COCO's and YOLO's layout, and how to break them."""

from __future__ import annotations

import json
from pathlib import Path

from image_files import picture, rotated_by_exif

CLASSES = ("cat", "dog")
# By image: width, height, EXIF orientation, objects with half-open boxes in the upright image.
IMAGES = {
    "a": (40, 30, 1, [("dog", (0, 0, 40, 30)), ("cat", (4, 6, 24, 21))]),
    "b": (30, 40, 6, [("dog", (0, 10, 15, 40))]),
    "empty": (20, 20, 1, []),
}


def write_images(folder: Path, images=IMAGES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height, orientation, _) in images.items():
        shown = picture(height, width)
        (folder / f"{name}.jpg").write_bytes(rotated_by_exif(shown, orientation, "JPEG"))


def coco_content(images=IMAGES) -> dict:
    """Categories with gaps between their ids, headed by one that no object has."""
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
    categories += [
        {"id": 10 * number + 7, "name": name, "supercategory": "pets"}
        for number, name in enumerate(CLASSES)
    ]
    listed, objects = [], []
    for number, (name, (width, height, _, found)) in enumerate(images.items(), start=100):
        listed.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
        for label, (x0, y0, x1, y1) in found:
            category = 10 * CLASSES.index(label) + 7
            entry = {"id": len(objects), "image_id": number, "category_id": category}
            objects.append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0})
    return {"images": listed, "annotations": objects, "categories": categories}


def write_coco(root: Path, content=None, name="_annotations.coco.json", images=IMAGES) -> Path:
    write_images(root, images)
    content = coco_content(images) if content is None else content
    text = content if isinstance(content, str) else json.dumps(content)
    (root / name).write_text(text)
    return root


def yolo_line(label: int, box, width: int, height: int) -> str:
    x0, y0, x1, y1 = box
    middle = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
    numbers = (*middle, (x1 - x0) / width, (y1 - y0) / height)
    return " ".join([str(label), *map(repr, numbers)])


def write_yolo(root: Path, data: str = "names: [cat, dog]\ntrain: images\n", images=IMAGES) -> Path:
    write_images(root / "images", images)
    (root / "labels").mkdir(exist_ok=True)
    (root / "data.yaml").write_text(data)
    for name, (width, height, _, found) in images.items():
        lines = [yolo_line(CLASSES.index(label), box, width, height) for label, box in found]
        (root / "labels" / f"{name}.txt").write_text("\n".join(lines))
    return root


def voc_xml(size=(40, 30), objects=(), extra="") -> str:
    """An annotation; of each object the class, the 1-based inclusive box and what else it says."""
    width, height = size
    text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{extra}"
    for name, box, more in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        text += f"<object><name>{name}</name>{more}<bndbox>{inner}</bndbox></object>"
    return text + "</annotation>"


def write_voc(root: Path, images=IMAGES) -> Path:
    """The official layout, with all images in the split `train`."""
    tree = root / "VOCdevkit" / "VOC2007"
    (tree / "ImageSets" / "Main").mkdir(parents=True)
    (tree / "Annotations").mkdir()
    write_images(tree / "JPEGImages", images)
    for label in CLASSES:
        lines = [
            f"{name} {1 if label in [each for each, _ in found] else -1}\n"
            for name, (*_, found) in images.items()
        ]
        (tree / "ImageSets" / "Main" / f"{label}_train.txt").write_text("".join(lines))
    for name, (width, height, _, found) in images.items():
        objects = [(label, (x0 + 1, y0 + 1, x1, y1), "") for label, (x0, y0, x1, y1) in found]
        (tree / "Annotations" / f"{name}.xml").write_text(voc_xml((width, height), objects))
    return root
