"""The page in a real browser: a headless Chromium, in a narrow and in a wide window."""

import html
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data_tools import plot_run
from tests.support.packages import require_programs
from tests.support.runs import pptrain_rows, pretrain_rows, report, stage_rows, write_run

pytestmark = pytest.mark.service
_NARROW, _WIDE = 380, 1600  # CSS pixels
_FLAGS = (
    *"--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run".split(),
    *"--disable-sync --disable-background-networking --disable-component-update".split(),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever the page wanted to fetch would be missing
)

# Frames have the width that they are given; windows do not. What each shows is written into the page around them.
_AROUND = """<!DOCTYPE html>
<meta charset="utf-8">
%(frames)s
<pre id="seen"></pre>
<script>
function look(frame) {
  const page = frame.contentDocument, all = [...page.querySelectorAll("img")];
  const visible = () => all.filter(image => image.getClientRects().length).map(image => image.alt);
  const root = page.documentElement;
  const seen = {
    width: root.clientWidth, needed: Math.max(root.scrollWidth, page.body.scrollWidth),
    broken: all.filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
    beyond: all.filter(image => image.getBoundingClientRect().right > root.clientWidth).length,
    columns: new Set(all.map(image => image.getBoundingClientRect().left).filter(left => left > 0)).size,
    colours: ["color", "backgroundColor"].map(name => frame.contentWindow.getComputedStyle(page.body)[name]),
    first: visible(), shown: {},
  };
  for (const label of page.querySelectorAll("label")) {
    label.click();
    seen.shown[label.textContent.trim()] = visible();
  }
  return seen;
}
addEventListener("load", () => {
  document.getElementById("seen").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
</script>
"""


def _page(directory: Path) -> str:
    """A report of two phases and two evaluations, with names that are hard to fit in."""
    climb = write_run(
        directory / "pptrain", pptrain_rows([4.0 - n / 50 for n in range(100)], [1 + n // 25 for n in range(100)]),
        stage_rows([0, 250, 500, 750], [1, 2, 3, 4]), [0, 300], "seed: 1\n",
    )  # fmt: skip
    evaluations = [{"step": step, "heldout_acc": 0.5, "heldout_c4_loss": 5.0} for step in (0, 500)]
    mix = write_run(
        directory / "pretrain", pretrain_rows([6.0] * 50), evaluations,
        settings=f"seed: 2\ndata_dir: /scratch/{'very/' * 20}long\n",
    )  # fmt: skip
    files = [directory / "a.json", directory / "b.json"]
    for path in files:
        path.write_text(json.dumps(report(f"{path.stem * 40}/step_1", [0.9, 0.5], half_width=0.1)))
    plot_run.main(
        [str(climb), str(mix), "--names", "a_name_of_many_words_" * 4, "short", "--out", str(directory / "report"),
         "--evaluation", *map(str, files)]
    )  # fmt: skip
    return (directory / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Width of the window → what the browser shows in it."""
    require_programs({"chromium": "chromium"})
    directory = tmp_path_factory.mktemp("browser")
    page = html.escape(_page(directory))
    frames = [
        f'<iframe srcdoc="{page}" style="width: {width}px; height: 900px"></iframe>' for width in (_NARROW, _WIDE)
    ]
    around = directory / "around.html"
    around.write_text(_AROUND % {"frames": "\n".join(frames)})
    done = subprocess.run(
        ["chromium", *_FLAGS, f"--user-data-dir={directory / 'profile'}", "--dump-dom", around.as_uri()],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout.partition('<pre id="seen">')[2].partition("</pre>")[0]
    return dict(zip((_NARROW, _WIDE), json.loads(html.unescape(text)), strict=True))


@pytest.mark.parametrize("width", [_NARROW, _WIDE])
def test_all_pictures_are_there_and_nothing_is_wider_than_the_window(seen: dict, width: int) -> None:
    shown = seen[width]
    assert shown["broken"] == [] and shown["beyond"] == 0
    assert width - 20 <= shown["width"] <= width  # less a vertical scroll bar
    assert shown["needed"] <= shown["width"]


def test_pictures_use_the_width(seen: dict) -> None:
    assert seen[_NARROW]["columns"] == 1 and seen[_WIDE]["columns"] == 3


@pytest.mark.parametrize("width", [_NARROW, _WIDE])
def test_the_switch_shows_one_axis_at_a_time(seen: dict, width: int) -> None:
    shown = seen[width]["shown"]
    assert list(shown) == ["steps", "tokens", "C4 tokens", "time"]
    assert seen[width]["first"] == shown["steps"]
    for axis, pictures in shown.items():
        assert pictures[0] == "Accuracy by lookahead"
        assert len(pictures) > 7 and all(picture.endswith(f" against {axis}") for picture in pictures[1:])


def test_dark_text_on_white(seen: dict) -> None:
    assert seen[_WIDE]["colours"] == ["rgb(26, 26, 26)", "rgb(255, 255, 255)"]
