"""The report in a real browser: what it draws, what it says to the console, how wide it is."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from grid_tables import RESULTS

from spptransfer.report import write_report
from spptransfer.report.page import grid_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)
# Runs around the untouched page in a frame of a phone's width, and writes down what it finds.
PROBE = """
<!doctype html><meta charset="utf-8"><pre id="found"></pre>
<iframe id="frame" width="{width}" height="800" srcdoc="{page}"></iframe>
<script>
const frame = document.getElementById("frame");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const all = (css) => [...page.querySelectorAll(css)];
  const matrix = page.getElementById("matrix");
  const found = {{
    visible: root.clientWidth, needed: root.scrollWidth,
    wide: all("body *")
      .filter((e) => !e.closest(".scroll, nav, svg"))
      .filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1)
      .map((e) => e.outerHTML.slice(0, 80)),
    flat: all("svg").filter((e) => !e.closest("details") && !e.getBoundingClientRect().height)
      .map((e) => e.getAttribute("class")),
    unfilled: all(".bar .fill, .heat path, .dot").filter(
      (e) => ["rgb(0, 0, 0)", "none"].includes(getComputedStyle(e).fill)).length,
    images: all("img").map((e) => e.naturalWidth),
    buttons: all("button").filter((e) => !e.hidden).length,
    names: [],
  }};
  for (const key of ["rank", "highest", "name"]) {{
    page.querySelector(`[data-key=${{key}}]`)?.click();
    found.names.push(all("#bars .name").map((e) => e.textContent));
  }}
  if (matrix) {{
    const box = matrix.getBoundingClientRect(), scale = box.width / matrix.viewBox.baseVal.width;
    const at = Number(matrix.dataset.margin) + 0.5 * Number(matrix.dataset.cell);
    const place = {{ clientX: box.left + scale * at, clientY: box.top + scale * at }};
    matrix.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove", place));
    found.pointed = page.getElementById("readout").textContent;
    const right = new frame.contentWindow.KeyboardEvent("keydown", {{ key: "ArrowRight" }});
    matrix.dispatchEvent(right);
    found.walked = page.getElementById("readout").textContent;
    page.querySelector(".pairs li").click();
    found.pair = page.getElementById("readout").textContent;
  }}
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on this machine ({', '.join(BROWSERS)})")
    return found


def dump(browser: str, page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's DOM after loading, and what it wrote to the console."""
    command = [browser, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=180, check=True)
    log = done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8"), [line for line in log.splitlines() if "CONSOLE" in line]


def probe(browser: str, report: Path, folder: Path, *, width: int) -> dict:
    """Measure a report in a frame of a given width."""
    page = folder / "probe.html"
    text = html.escape(report.read_text(encoding="utf-8"), quote=True)
    page.write_text(PROBE.format(width=width, page=text), encoding="utf-8")
    dom, console = dump(browser, page, folder / "profile", "--window-size=2000,1000")
    assert console == []
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


LONG = ["a_rather_long_class_name_without_any_space_in_it" * 3, "b", "<img src=x onerror=alert(1)>"]
RUNS = {
    "two": {"classes": 2, "splits": 3},
    "twenty": {"classes": 20, "test": 200, "multi_label": True},
    "many": {"classes": 102, "splits": 10, "test": 408, "levels": (6, 3, 2, 1)},
    "long": {"classes": LONG, "splits": 2, "ids": [f"{'x' * 150}{n}.jpg" for n in range(40)]},
}


@pytest.mark.parametrize("kind", RUNS)
def test_the_page_draws_its_figures_and_says_nothing_on_the_console(
    browser, make_run, tmp_path, kind
):
    report = write_report(make_run(**RUNS[kind]))
    dom, console = dump(browser, report, tmp_path / "profile")
    assert console == []
    classes = RUNS[kind]["classes"]
    n_classes = classes if isinstance(classes, int) else len(classes)
    assert dom.count('<svg class="bar"') == n_classes
    assert dom.count('<svg class="heat"') == n_classes + 1
    assert dom.count('<svg class="stack"') == 1
    if RUNS[kind].get("multi_label"):
        assert dom.count('<svg class="pr"') == n_classes
    else:
        assert dom.count('id="matrix"') == 1


@pytest.mark.parametrize("width", [360, 820, 1440])
@pytest.mark.parametrize("kind", RUNS)
def test_nothing_is_wider_than_the_screen(browser, make_run, noise_images, tmp_path, kind, width):
    report = write_report(make_run(**RUNS[kind], root=noise_images))
    found = probe(browser, report, tmp_path, width=width)
    assert found["visible"] == width
    assert found["wide"] == []
    assert found["needed"] <= width
    assert found["flat"] == []
    assert found["unfilled"] == 0
    assert all(found["images"])


@pytest.mark.parametrize("width", [360, 1440])
def test_a_detectors_page_fits_the_screen(browser, make_detection_run, tmp_path, width):
    names = [*LONG, "d", "e"]
    found = probe(browser, write_report(make_detection_run(classes=names)), tmp_path, width=width)
    assert found["wide"] == found["flat"] == []
    assert found["needed"] <= width
    assert found["unfilled"] == 0
    assert len(found["images"]) > 12
    assert all(found["images"])


def test_classes_can_be_reordered(browser, make_run, tmp_path):
    report = write_report(make_run(["b", "c", "a"], test=30))
    found = probe(browser, report, tmp_path, width=1000)
    rising, falling, by_name = found["names"]
    assert falling == rising[::-1]
    assert by_name == ["a", "b", "c"]
    assert found["buttons"] == 4


def test_pointing_walking_and_choosing_a_pair_read_out_the_cell(browser, make_run, tmp_path):
    report = write_report(make_run(LONG, test=90))
    found = probe(browser, report, tmp_path, width=700)
    labels = json.loads(report.read_text().split('id="confusion-data">')[1].split("</script>")[0])[
        "labels"
    ]
    first, second = (f"\u2068{label}\u2069" for label in labels[:2])
    assert found["pointed"].startswith(f"{first} recognised: ")
    assert found["walked"].startswith(f"{first} taken for {second}: ")
    assert re.search(r"taken for .*: \d+ of 30 \(\d+\.\d %\)", found["pair"])


def test_a_hostile_page_runs_nothing(browser, make_run, tmp_path):
    hostile = [
        "<script>document.title='owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
    ]
    report = write_report(make_run(hostile, change=lambda results: results.update(name=hostile[0])))
    dom, console = dump(browser, report, tmp_path / "profile")
    assert console == []
    assert "<title>owned" not in dom


def test_what_a_table_of_runs_says_of_itself_fits_a_phone(browser, tmp_path):
    grid = html.escape(grid_page(RESULTS), quote=True)
    page = tmp_path / "probe.html"
    page.write_text(
        f'<pre id="found"></pre><iframe id="frame" width="360" srcdoc="{grid}"></iframe>'
        '<script>document.getElementById("frame").addEventListener("load", (event) => {'
        " const said = [...event.target.contentDocument.querySelectorAll('caption span')];"
        ' document.getElementById("found").textContent ='
        " said.map((e) => e.getBoundingClientRect().right).join(' '); });</script>",
        encoding="utf-8",
    )
    dom, _ = dump(browser, page, tmp_path / "profile", "--window-size=1000,1000")
    rights = re.search(r'<pre id="found">(.*?)</pre>', dom)[1].split()
    assert len(rights) == 2
    assert all(float(right) <= 360 for right in rights)
