"""The page in a real browser: it shows what it is given, runs nothing of it, and fits every screen."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from browsing import looking_at

from selfie_cli.reporting import page as pages
from selfie_cli.reporting.charts import Line
from selfie_cli.reporting.page import Page, Picture, piece, section
from selfie_cli.runs import Run

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>' + "W" * 450
NAMES = (f"{EVIL}.png", "</script><script>alert(3)</script>.png", "line\nbreak\u2028\udcff\u202e.png", "plain.png")
CLASSES = (EVIL, "'; alert(4) //", "c" * 300)


PUZZLE = {
    "grid": 4,
    "masked": [3, 5, 10],
    "picks": [0, 0, 2],
    "probabilities": [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every piece of a page, with a name that attacks wherever a name can be."""
    page = Page()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=generator)
    line = [(step, 0.5 + step / 100) for step in range(0, 50, 10)]
    how: dict[str, Any] = {"show": "{:.2f}".format, "show_x": "{:,.0f}".format, "guide": (0.25, "chance")}
    charts = [pages.chart(page, EVIL, [Line(EVIL, line), Line("b", line[:3])], **how)]
    page.add("charts", "Charts", "training", told=EVIL, names=[EVIL, "b"], charts=charts)
    puzzle = {"name": EVIL, "pixels": pixels[0], **PUZZLE}
    method = {"num_masked": 3, "num_patches": 16, "chance": 1 / 3}
    page.add(
        *("picks", "Picks", "patch_picks"),
        **{"module": method, "note": EVIL, "grid": 4, "small": True, "right": 2, "total": 3, "puzzles": [puzzle]},
    )
    figures = [Picture(each, [EVIL, EVIL], EVIL, right=bool(i % 2)) for i, each in enumerate(pixels[:7])]
    page.add("rows", EVIL, "view_picks", note=EVIL, rows=[figures], right=3, total=7, small=True)
    page.add("mistakes", EVIL, "mistakes", pictures=figures, small=False)
    about = {"which": EVIL, "whole": False, "num_images": 11, "accuracy": 0.5, "num_ranked": 3}
    counts = [[5, 1, 0], [2, 3, 0], [0, 0, 0]]
    page.add("classes", EVIL, "by_class", **about, shown=[(EVIL, 0.25, 4)], classes=CLASSES, counts=counts, confused=[])
    labels, names = [i % 3 for i in range(40)], [NAMES[i % 4] for i in range(40)]
    points = pages.map_points(page, torch.rand(40, 2, generator=generator), pixels, names, labels, CLASSES)
    shown = {"points": points, "labels": labels, "classes": CLASSES, "thumbs": pixels, "num_images": 99, "num_bad": 1}
    page.add("map", "Map", "map_of_images", **shown)
    table = piece("table", [EVIL, "b"], [[EVIL, 1], ["x" * 400, 2]], caption=EVIL)
    page.add("table", "Table", "of_parts", parts=[table])
    config = {"asked": {EVIL: {"a": EVIL, "b": [EVIL, 1]}, "none": None}, "derived": {EVIL: EVIL}, "measured": {}}
    page.add("details", "Details", "details", config=config, listed=[(EVIL, EVIL, 2, [(EVIL, EVIL)])])
    config |= {"data": {"unreadable": 3}, "from": [], "verb": "finetune"}
    run = Run(Path(EVIL.replace("/", "")), {**config, "derived": {"backbone": EVIL, "method": "finetune"}})
    found = {"dataset": EVIL, "num_classes": 3, "num_test": 9}
    told: dict[str, Any] = {"origins": EVIL, "last": {}, "found": found, "verdict": [EVIL], "notes": [EVIL]}
    file = tmp_path_factory.mktemp("page") / "page.html"
    header = section("heading", run=run, **told)
    file.write_text(pages.document(page, title=EVIL, header=header, footer=EVIL), encoding="utf-8")
    return file


def test_what_it_is_given_is_shown_and_not_run(browser: Any, drawn: Path) -> None:
    with looking_at(browser, drawn) as page:
        assert page.title() == EVIL
        assert page.locator("h1").inner_text() == EVIL.replace("/", "")
        assert page.locator("script").count() == 2
        assert page.locator("[onerror], [src=x]").count() == 0
        assert page.locator(".row img").first.get_attribute("alt") == EVIL
        assert EVIL in page.locator("details").last.inner_text()
        assert page.locator(".heat tbody th").first.inner_text() == EVIL


def test_the_policy_stops_what_gets_in_all_the_same(browser: Any, drawn: Path, tmp_path: Path) -> None:
    smuggled = '<img src="http://127.0.0.1:9/x" onerror="document.title=\'run\'"><script>document.title="run"</script>'
    bad = tmp_path / "bad.html"
    bad.write_text(drawn.read_text("utf-8").replace("<main>", f"<main>{smuggled}"), encoding="utf-8")
    page = browser.new_page()
    refused: list[str] = []
    failed: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.on("requestfailed", lambda request: failed.append(request.failure))
    page.goto(bad.as_uri())
    assert page.title() == EVIL
    assert sum("Content Security Policy" in each for each in refused) >= 2
    assert all(each == "csp" for each in failed)
    page.close()


def test_pointing_at_the_map_shows_the_image_and_its_name(browser: Any, drawn: Path) -> None:
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', drawn.read_text("utf-8"))[1])["map"]
    with looking_at(browser, drawn) as page:
        tip = page.locator(".tip")
        assert not tip.is_visible()
        for index in (0, 1, 2, 39):
            page.locator(".map circle").nth(index).hover(force=True)
            assert tip.is_visible()
            assert tip.locator("b").inner_text() == CLASSES[index % 3]
            assert tip.locator("span").text_content() == data["names"][index]
            window, sheet = tip.locator(".window").bounding_box(), tip.locator("img").bounding_box()
            column, row = index % data["columns"], index // data["columns"]
            assert window["x"] - sheet["x"] == pytest.approx(134 * column, abs=1)
            assert window["y"] - sheet["y"] == pytest.approx(134 * row, abs=1)
        assert data["names"][2] == r"line\nbreak\u2028\udcff\u202e.png"
        page.mouse.move(2, 2)
        assert not tip.is_visible()

        page.locator(".map svg").focus()
        first = tip.locator("span").text_content(), page.locator("circle.here").get_attribute("cx")
        page.keyboard.press("ArrowRight")
        assert (tip.locator("span").text_content(), page.locator("circle.here").get_attribute("cx")) != first
        page.keyboard.press("Escape")
        assert not tip.is_visible()

        page.locator("button[data-class='1']").click()
        assert page.locator(".map circle:not(.off)").count() == 13
        assert page.locator(".map circle.c1:not(.off)").count() == 13


def test_charts_read_out_values(browser: Any, drawn: Path) -> None:
    with looking_at(browser, drawn) as page:
        page.locator("svg.chart").scroll_into_view_if_needed()
        box, told = page.locator("svg.chart").bounding_box(), page.locator("output")
        assert told.text_content() == f"{EVIL} 0.90, b 0.70 at 40"
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        assert told.text_content() == f"{EVIL} 0.70, b 0.70 at 20"
        page.locator("svg.chart").focus()
        page.keyboard.press("Home")
        assert told.text_content() == f"{EVIL} 0.50, b 0.50 at 0"


@pytest.mark.parametrize("width", [360, 800])
def test_nothing_is_wider_than_the_screen(browser: Any, drawn: Path, width: int) -> None:
    with looking_at(browser, drawn, width=width, touch=True) as page:
        page.locator(".map circle").nth(3).tap(force=True)
        box = page.locator(".tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_puzzles_say_what_was_picked_where() -> None:
    drawn = piece("puzzle", "image7", "data:", "a", **PUZZLE)
    assert "<b>2 of 3 right</b>" in drawn
    assert re.findall(r"<title>(.*?)</title>", drawn) == [
        "row 1, column 4: the right patch, 70%",
        "row 2, column 2: took the patch of row 1, column 4 with 60%, gave the right one 30%",
        "row 3, column 3: the right patch, 80%",
    ]
    assert re.findall(r"<text[^>]*>(. \d+)</text>", drawn) == ["✓ 70", "✗ 60", "✓ 80"]
    # At row 2, column 2 stands the patch of row 1, column 4.
    assert re.search(r'<svg viewBox="3 0 1 1" x="1" y="1" width="1" height="1">', drawn)


def drawn_chart(lines: list[Line], **how: Any) -> tuple[str, list[str]]:
    """A chart, and what it says at each x."""
    page = Page()
    drawn = pages.chart(page, "t", lines, **how)
    return drawn, [text for _, text in page.data["charts"][0]]


def test_charts_are_to_scale() -> None:
    how: dict[str, Any] = {"show": "{:g}".format, "show_x": "{:g}".format}
    drawn, told = drawn_chart([Line("a", [(0, 0.0), (50, 1.0), (100, 0.5)])], **how, from_zero=True)
    (points,) = re.findall(r'points="([^"]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.3)
    labels = dict(re.findall(r'y="([\d.]+)" class="end">([^<]+)<', drawn))
    zero = next(float(y) for y, text in labels.items() if text == "0")
    assert zero - 4 == pytest.approx(y0, abs=0.1)
    assert told == ["0 at 0", "1 at 50", "0.5 at 100"]
    later, _ = drawn_chart([Line("a", [(50, 1.0), (100, 0.5)])], **how, from_zero=True)
    assert float(re.findall(r'points="([\d.]+),', later)[0]) == x1  # x begins at 0, not at the first point
    lines = [Line("a", [(0.01, 0.5), (0.1, 0.6), (1, 0.7)], [0.1, 0.0, 0.0])]
    log, told = drawn_chart(lines, **how, x_ticks=[0.01, 0.1, 1], log=True)
    assert told == ["0.5 ± 0.1 at 0.01", "0.6 at 0.1", "0.7 at 1"]  # no spread of a single seed
    first, second, third = (float(point.split(",")[0]) for point in re.findall(r'points="([^"]+)"', log)[0].split())
    assert second - first == pytest.approx(third - second, abs=0.2)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0, 0.0], [1e-12, 2e-12], [1e9, -1e9]])
def test_charts_of_odd_values(values: list[float]) -> None:
    for from_zero in (True, False):
        drawn, _ = drawn_chart([Line("a", list(enumerate(values)))], show=str, show_x=str, from_zero=from_zero)
        assert "nan" not in drawn
        assert "inf" not in drawn


def test_a_curve_is_a_file_of_its_own() -> None:
    lines = [Line(EVIL, [(0.05, 0.3), (1.0, 0.5)], [0.02, 0.01]), Line("b", [(0.05, 0.4), (1.0, 0.52)], [0.05, 0.0])]
    text = pages.curve_file(EVIL, lines, show=pages.percent, show_x="{:g}".format, x_ticks=[0.05, 1.0], log=True)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(EVIL) == 2
    assert {"b", "0.05", "1"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert {"svg", ".line circle", ".grid"} <= {each.strip() for each in re.findall(r"([^{}]+)\{", style)}
    assert "script" not in {each.tag.rpartition("}")[2] for each in root.iter()}


def test_text_is_escaped() -> None:
    odd = "a<b>&\"'\x1b[31m\udcff"
    assert piece("paragraph", odd) == '<p class="soft">a&lt;b&gt;&amp;&#34;&#39;\\x1b[31m\\udcff</p>'
    grouped = piece("group", odd, [piece("paragraph", "&"), "<i>", None])
    assert grouped.endswith('<p class="soft">&amp;</p>&lt;i&gt;</div>')
    page = Page(data={"charts": [], "a": "</script><!--\u2028"})
    written = pages.document(page, title="t", header="", footer="")
    text = re.search(r'<script id="data"[^>]*>(.*?)</script>', written)[1]
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == page.data
    with pytest.raises(ValueError, match="JSON compliant"):
        pages.document(Page(data={"a": float("nan")}), title="t", header="", footer="")
