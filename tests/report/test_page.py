from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from spptransfer.errors import CacheError
from spptransfer.report import terminal_table, write_report
from spptransfer.report.template import FAILURES_SHOWN, THUMBNAIL_BYTES, THUMBNAIL_SIDE, thumbnail

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "</script><script>alert(1)</script>",
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "&lt;b&gt;",
    "\u202e\u2028\U0001f600",
]


class Page(HTMLParser):
    """Elements with their attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def count(self, tag: str, css: str | None = None) -> int:
        return sum(
            name == tag and (css is None or css in (attributes.get("class") or "").split())
            for name, attributes in self.elements
        )

    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements} - {None}


def report_of(run: Path) -> Page:
    page = Page(write_report(run))
    assert page.open == []
    return page


def test_a_run_of_two_classes_has_every_section(make_run):
    page = report_of(make_run(2, splits=3))
    sections = "classes confusion images where choice time rows origin"
    assert set(sections.split()) <= page.ids()
    assert "curves" not in page.ids()
    assert page.count("svg", "bar") == 2
    assert page.count("svg", "matrix") == 1
    assert page.count("svg", "heat") == 3
    assert page.count("svg", "strip") == 2
    assert page.count("svg", "plot") == 2
    assert "probabilities" in page.ids()


def test_a_multi_label_run_has_curves_and_no_confusion(make_run):
    page = report_of(make_run(20, splits=2, test=200, multi_label=True))
    assert page.count("line", "whisker") == 20
    assert "curves" in page.ids()
    assert "confusion" not in page.ids()
    assert page.count("svg", "pr") == 20
    assert page.count("svg", "bar") == 20
    assert page.count("svg", "choice") == 21
    for method in ("11-point", "area", "uninterpolated"):
        assert f"mean average precision ({method})" in page.text


def test_a_large_run_stays_under_five_megabytes(make_run, noise_images):
    ids = [f"image {number % 40:05d}.jpg" for number in range(4400)]
    run = make_run(102, splits=10, test=4400, levels=(6, 3, 2, 1), ids=ids, root=noise_images)
    path = write_report(run)
    page = Page(path)
    assert path.stat().st_size < 5_000_000
    assert page.count("svg", "bar") == 102
    assert page.count("svg", "heat") == 103
    assert page.count("img") == 24


def test_the_headline_is_written_with_deviation_and_protocol(make_run):
    run = make_run(3, splits=4)
    headline = json.loads((run / "results.json").read_text())["headline"]
    text = report_of(run).text
    assert f"{100 * headline['value']:.2f}" in text
    assert f"± {100 * headline['std']:.2f}" in text
    assert "Random scores on invented images." in text


def test_nothing_is_loaded_from_elsewhere(make_run, noise_images):
    page = report_of(make_run(3, root=noise_images))
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "data", "srcset", "xlink:href"):
            allowed = ("#", "file:") if tag == "a" else ("#", "data:")
            assert (attributes.get(name) or "#").startswith(allowed), (tag, attributes)
    text = (Path(__file__).parents[2] / "spptransfer/report/report.css").read_text()
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_names_stay_text(make_run):
    def poison(value):
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return HOSTILE[1] if isinstance(value, str) else value

    def change(results):
        for key in ("pipeline", "versions", "machine", "classifier", "protocol", "features"):
            results[key] = poison(results[key])
        for split in results["splits"]:
            split.update(name=HOSTILE[0], checksum=HOSTILE[1])
        results.update(name=HOSTILE[3], command=HOSTILE[3], started=HOSTILE[2], finished=HOSTILE[2])
        results["dataset"].update(name=HOSTILE[0])
        results["rows"]["failures"] = [{"id": text, "error": text} for text in HOSTILE]

    ids = [f"{HOSTILE[number % len(HOSTILE)]}{number}.jpg" for number in range(40)]
    path = write_report(make_run(HOSTILE, ids=ids, splits=2, change=change))
    page = Page(path)
    assert page.open == []
    assert page.count("script") == 2
    assert page.count("img") == 0
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    for text in HOSTILE:
        assert text in page.text


def test_splits_without_a_number_are_not_called_one_split(make_run):
    def change(results):
        for metric in (results["headline"], *results["metrics"].values()):
            metric.update(value=float("nan"), std=None, per_split=[float("nan")] * 3)

    text = report_of(make_run(2, splits=3, change=change)).text
    assert "Fewer than two splits have a number" in text
    assert "One split" not in text


def test_a_long_class_name_is_cut_below_an_image_and_whole_on_pointing(make_run):
    long = "word " * 30 + "end"
    page = report_of(make_run([long, "b"], ids=[f"{n}.jpg" for n in range(40)]))
    assert "over " + long not in page.text
    assert ("strong", {"title": long}) in page.elements
    assert f"{long[:59].rstrip()}…" in page.text


def test_features_of_the_cache_and_those_of_the_classifier_are_told_apart(make_run):
    stored, used = report_of(make_run(2, levels=(3, 1))).text.split("Features of the classifier")
    assert "Features in the cache" in stored
    assert "3, 1" in used


def test_the_embedded_data_cannot_close_its_script(make_run):
    text = write_report(make_run(["</script><b>", "<!--<script>"])).read_text()
    embedded = text.split('id="confusion-data">')[1].split("</script>")[0]
    assert json.loads(embedded)["labels"] == ["</script><b>", "<!--<script>"]


def test_the_policy_allows_exactly_the_pages_own_script_and_style(make_run):
    text = write_report(make_run(2)).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<[^>]*\sstyle=", text)


def test_a_run_without_predictions_and_model_says_so(make_run):
    page = report_of(make_run(3, predictions=False, model=False))
    assert "this run folder holds no predictions.npz" in page.text
    assert "this run folder holds no model.safetensors" in page.text
    assert page.count("svg", "bar") == 3


def test_weights_that_do_not_fit_their_blocks_are_noted(make_run):
    run = make_run(2, change=lambda results: results["features"]["blocks"][0].update(level=5))
    assert "has no 5×5 bins" in report_of(run).text


def test_features_without_a_grid_have_no_maps(make_run):
    page = report_of(make_run(2, levels=(None,)))
    assert "these features have no grid of bins" in page.text
    assert page.count("svg", "heat") == 0


def test_only_the_required_sections_are_required(make_run):
    def change(results):
        optional = "pipeline command versions machine rows classifier protocol metrics timings"
        for key in f"{optional} started finished".split():
            del results[key]
        results["features"] = {}
        results["dataset"] = {"name": "bare", "classes": results["dataset"]["classes"]}
        results["splits"] = [{}]
        results["headline"] = {"metric": "overall accuracy", "value": 0.5}

    page = report_of(make_run(3, change=change, model=False))
    assert "The results hold no timings." in page.text
    assert "The results hold no score per class." in page.text


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_the_results_say_of_classes_without_test_images_is_told(make_run, multi_label):
    def change(results):
        results.update(cautions=["class_0 has <4> test images"])
        for metric in results["metrics"].values():
            if metric["per_class"]:
                metric["per_class"]["class_1"] = None
                metric["left_out"] = ["class_1"]

    run = make_run(3, multi_label=multi_label, change=change)
    page = report_of(run)
    told = "over 2 of 3 classes: no test image shows class_1"
    assert f"The mean is {told}." in page.text
    assert "class_0 has <4> test images" in page.text
    assert page.count("svg", "bar") == 3
    assert re.search(r"class_1\s*–", page.text)
    assert told in terminal_table(json.loads((run / "results.json").read_text()))


@pytest.mark.parametrize(
    ("section", "key", "told"),
    [
        (
            "protocol",
            "same_image_in_train_and_test",
            "7 test images, over all splits, are the same file as a training image",
        ),
        (
            "dataset",
            "same_image_in_two_classes",
            "7 images are the same file as an image of another class",
        ),
    ],
)
def test_images_that_are_one_file_are_told(make_run, section, key, told):
    found = {"pairs": 7, "examples": [["<b>.jpg", "copy.jpg"]]}
    page = report_of(make_run(2, change=lambda results: results[section].update({key: found})))
    assert told in page.text
    assert "<b>.jpg" in page.text
    assert "copy.jpg" in page.text


def test_images_that_are_gone_are_counted(make_run, tmp_path):
    page = report_of(make_run(3, root=tmp_path / "gone"))
    assert "could not be read where the run found the dataset" in page.text
    assert page.count("img") == 0
    assert page.count("li", "picture") > 0


def test_images_are_embedded_where_they_are_found_and_lead_to_their_files(make_run, noise_images):
    page = report_of(make_run(3, root=noise_images))
    assert page.count("img") == page.count("li", "picture") > 0
    assert "could not be read" not in page.text
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    files = [link for link in links if link.startswith("file:")]
    assert len(files) == page.count("img")
    assert all(Path(url2pathname(urlsplit(link).path)).is_file() for link in files)


def test_names_of_files_are_quoted_in_their_links(make_run, tmp_path):
    root = tmp_path / 'a "><b> & #1'
    root.mkdir()
    ids = [f"{number} %41.jpg" for number in range(40)]
    for name in ids:
        Image.new("RGB", (9, 9)).save(root / name)
    page = report_of(make_run(2, ids=ids, root=root))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    found = {url2pathname(urlsplit(link).path) for link in links if link.startswith("file:")}
    assert found <= {str(root / name) for name in ids}
    assert len(found) > 2


def test_many_failed_rows_are_cut_and_counted(make_run):
    failures = [{"id": f"<{number}>", "error": "cut"} for number in range(FAILURES_SHOWN + 3)]
    page = report_of(make_run(2, change=lambda results: results["rows"].update(failures=failures)))
    assert "and 3 more rows, listed in results.json" in page.text
    assert f"<{FAILURES_SHOWN - 1}>" in page.text
    assert f"<{FAILURES_SHOWN}>" not in page.text


def test_beyond_the_limit_pairs_replace_the_matrix(make_run):
    page = report_of(make_run(251, test=502, levels=(2,)))
    assert page.count("svg", "matrix") == 0
    assert "up to 250 classes" in page.text
    assert page.count("ol", "pairs") == 1
    assert "confusion-data" not in page.ids()


@pytest.mark.parametrize("classes", [3, 102])
def test_at_most_ten_of_the_most_confused_pairs_are_listed(make_run, classes):
    page = report_of(make_run(classes, splits=4, test=204))
    pairs = [attributes for tag, attributes in page.elements if "data-row" in attributes]
    assert len(pairs) == min(10, classes * (classes - 1))


def test_the_folder_of_the_users_own_images_stands_in_title_head_and_facts(make_run):
    def change(results):
        results["dataset"].update(name="folder", root="/data/<my> birds")

    run = make_run(2, change=change)
    page = report_of(run)
    assert "<title>synthetic · &lt;my&gt; birds · " in (run / "report.html").read_text()
    assert "Dataset<my> birds" in page.text.replace("\n", "")
    assert not re.search(r"\bfolder\b", page.text.split("Classes")[1])


def test_names_as_long_as_a_user_likes_do_not_fill_the_page(make_run):
    long = [str(number) + "\u202e" * 10_000 for number in range(20)]

    def change(results):
        results.update(name="n" * 10_000)
        results["rows"]["failures"] = [{"id": "i" * 10_000, "error": "e" * 10_000}] * 50
        results["pipeline"] = {"p" * 10_000: "v" * 10_000}

    ids = [f"{number}{'x' * 10_000}" for number in range(40)]
    path = write_report(make_run(long, ids=ids, splits=2, change=change))
    assert path.stat().st_size < 300_000


def test_a_given_C_is_told_from_a_chosen_one(make_run):
    def change(results):
        for split in results["splits"]:
            split.update(C=1.0, validation=[])

    assert "not chosen but given" in report_of(make_run(2, change=change)).text


def test_perfect_results_have_no_confused_pairs(make_run, change_predictions):
    run = make_run(2, test=4)
    targets = np.array([0, 1, 0, 1], np.int32)
    scores = np.where(np.arange(2) == targets[:, None], 1, -1).astype(np.float32)
    change_predictions(run, scores=scores, targets=targets)
    assert "No test image was put into a wrong class." in report_of(run).text


def test_the_report_lies_in_the_run_folder_or_where_asked(make_run, tmp_path):
    run = make_run(2)
    assert write_report(run) == run / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(run, output=elsewhere) == elsewhere
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()


def test_a_place_that_cannot_be_written_is_told(make_run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match=r"cannot write '.*file'"):
        write_report(make_run(2), output=tmp_path / "file" / "page.html")


def test_the_same_run_gives_the_same_bytes(make_run, noise_images):
    run = make_run(5, splits=2, root=noise_images)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_half_precision_and_wide_models_are_read_too(make_run, tmp_path):
    run = make_run(2)
    weights = np.random.default_rng(0).normal(size=(2, 63)).astype(np.float16)
    save_file({"coef": weights}, run / "model.safetensors")
    assert report_of(run).count("svg", "heat") == 3


def test_a_broken_image_among_good_ones_costs_only_itself(make_run, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for number in range(40):
        Image.new("RGB", (30, 20)).save(root / f"image {number:05d}.jpg")
    run = make_run(2, root=root)
    complete = report_of(run).count("img")
    shown = re.findall(r'title="(image \d+\.jpg)"', (run / "report.html").read_text())
    (root / shown[0]).write_bytes(b"cut")
    page = report_of(run)
    assert page.count("img") == complete - shown.count(shown[0])
    assert "1 image of" in page.text


def decoded(uri: str | None) -> Image.Image:
    prefix = "data:image/jpeg;base64,"
    assert uri is not None
    assert uri.startswith(prefix)
    assert len(uri) < 4 / 3 * THUMBNAIL_BYTES + 50
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))


@pytest.mark.parametrize(
    ("mode", "name"),
    [("1", "x.png"), ("LA", "x.png"), ("P", "x.gif"), ("CMYK", "x.jpg"), ("I;16", "x.png")],
)
def test_a_thumbnail_of_any_mode_is_a_small_rgb_jpeg(tmp_path, mode, name):
    Image.new(mode, (600, 300)).save(tmp_path / name)
    image = decoded(thumbnail(tmp_path / name))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert image.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (1, 3000), (3000, 1)])
def test_small_images_are_not_enlarged_and_thin_ones_keep_a_pixel(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "x.png")
    found = decoded(thumbnail(tmp_path / "x.png")).size
    assert found == size if max(size) <= THUMBNAIL_SIDE else sorted(found) == [1, THUMBNAIL_SIDE]


def test_a_thumbnail_is_upright_and_of_noise_no_larger(tmp_path):
    picture = Image.effect_noise((400, 200), 150).convert("RGB")
    picture.paste("red", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # the upper side is on the right: turn a quarter clockwise
    picture.save(tmp_path / "x.jpg", exif=exif, quality=95)
    image = decoded(thumbnail(tmp_path / "x.jpg"))
    assert image.size == (THUMBNAIL_SIDE // 2, THUMBNAIL_SIDE)
    red, green, blue = image.getpixel((60, 30))
    assert red > 200 > 90 > max(green, blue)
    assert not image.getexif()


@pytest.mark.parametrize("contents", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", None])
@pytest.mark.parametrize("name", ["x.jpg", "nul\0byte.jpg", "x" * 5000])
def test_what_is_no_image_has_no_thumbnail(tmp_path, contents, name):
    if contents is not None and name == "x.jpg":
        (tmp_path / name).write_bytes(contents)
    assert thumbnail(tmp_path / name) is None
