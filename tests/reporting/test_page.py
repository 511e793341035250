"""The page in a real browser: it shows what it is given, runs nothing of it, and fits every screen."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import SMALL, draw_folder, selfie

from selfie_cli.reporting import page as pages
from selfie_cli.reporting.examples import tsne
from selfie_cli.reporting.page import Line, Page, markup
from selfie_cli.talk import printable

EVIL = '"><img src=x onerror=alert(1)>' + "W" * 200
IMAGES, PRETRAINED, FINETUNED = "<img src=x onerror=alert(2)>", "<script>alert(3)<!--", "'; alert(4)"
PUZZLE = {
    "grid": 4,
    "masked": [3, 5, 10],
    "picks": [0, 0, 2],
    "probabilities": [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]],
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with names that attack wherever a name can be: of classes, files, data set and runs."""
    folder = tmp_path_factory.mktemp("hostile")
    images = draw_folder(folder / IMAGES, train=48, test=24)
    for part in ("train", "test"):
        first, second, third = sorted((images / part).iterdir())[:3]
        first.rename(first.with_name(EVIL))
        second.rename(second.with_name("c" * 200))
        for number, file in enumerate(sorted(third.iterdir())):
            file.rename(file.with_name(f"<script>alert({number})<\udcff\n\u2028\u202e.png"))
    first, second = folder / PRETRAINED, folder / FINETUNED
    selfie("pretrain", images, *SMALL, "--recipe", "paper", "--steps", 2, "--out", first)
    with (first / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "loss": step / 100}) + "\n" for step in (10, 20, 30))
    selfie("report", first)
    selfie("finetune", "--dataset", images, "--from", first, *SMALL[2:-1], "--steps", 2, "--out", second)
    return folder


@contextlib.contextmanager
def looking_at(browser: Any, file: Path, *, width: int = 1280, touch: bool = False) -> Iterator[Any]:
    """The open page. At the end it must have been silent, opened no dialog, and loaded nothing but itself."""
    noise: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, has_touch=touch)
    page = context.new_page()
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(file.absolute().as_uri())
        yield page
        assert noise == []
        assert [url for url in asked if not url.startswith("data:")] == [file.absolute().as_uri()]
    finally:
        context.close()


def data_of(run: Path) -> dict[str, Any]:
    """What the script of the page reads."""
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', (run / "report.html").read_text("utf-8"))
    return dict(json.loads(found[1]))  # type: ignore[index]


@pytest.mark.parametrize("name", [PRETRAINED, FINETUNED])
def test_what_it_is_given_is_shown_and_not_run(browser: Any, hostile: Path, name: str) -> None:
    with looking_at(browser, hostile / name / "report.html") as page:
        assert name in page.title()
        assert page.locator("h1").inner_text() == name
        assert page.locator("script").count() == 2
        assert page.locator("[onerror], [src=x]").count() == 0
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert IMAGES in page.locator("main").inner_text()
        assert page.locator("button[data-class]").first.inner_text() == EVIL
        if name == FINETUNED:
            assert page.locator(".heat tbody th").first.inner_text() == EVIL


def test_the_policy_stops_what_gets_in_all_the_same(browser: Any, hostile: Path, tmp_path: Path) -> None:
    smuggled = '<img src="http://127.0.0.1:9/x" onerror="document.title=\'run\'"><script>document.title="run"</script>'
    good = (hostile / FINETUNED / "report.html").read_text("utf-8")
    (tmp_path / "bad.html").write_text(good.replace("<main>", f"<main>{smuggled}"), encoding="utf-8")
    page = browser.new_page()
    refused: list[str] = []
    failed: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.on("requestfailed", lambda request: failed.append(request.failure))
    page.goto((tmp_path / "bad.html").as_uri())
    assert page.title() != "run"
    assert sum("Content Security Policy" in each for each in refused) >= 2
    assert all(each == "csp" for each in failed)
    page.close()


def test_pointing_at_the_map_shows_the_image_and_its_name(browser: Any, hostile: Path) -> None:
    data = data_of(hostile / FINETUNED)["map"]
    with looking_at(browser, hostile / FINETUNED / "report.html") as page:
        tip, circles = page.locator(".tip"), page.locator(".map circle")
        assert not tip.is_visible()
        for index in range(circles.count()):
            circles.nth(index).hover(force=True)
            assert tip.is_visible()
            assert tip.locator("b").inner_text() == data["classes"][data["labels"][index]]
            assert tip.locator("span").text_content() == data["names"][index]
            window, sheet = tip.locator(".window").bounding_box(), tip.locator("img").bounding_box()
            assert window["x"] - sheet["x"] == pytest.approx(134 * (index % data["columns"]), abs=1)
            assert window["y"] - sheet["y"] == pytest.approx(134 * (index // data["columns"]), abs=1)
        assert any(printable("<script>alert(0)<\udcff\n\u2028\u202e.png") in name for name in data["names"])
        page.mouse.move(2, 2)
        assert not tip.is_visible()

        page.locator(".map svg").focus()
        here = page.locator("circle.here")
        name, x = tip.locator("span").text_content(), float(here.get_attribute("cx"))
        page.keyboard.press("ArrowRight" if x < 500 else "ArrowLeft")
        assert tip.locator("span").text_content() != name
        assert (float(here.get_attribute("cx")) > x) == (x < 500)
        page.keyboard.press("Escape")
        assert not tip.is_visible()

        page.locator("button[data-class='1']").click()
        assert page.locator(".map circle:not(.off)").count() == data["labels"].count(1) > 0
        assert page.locator(".map circle.c1:not(.off)").count() == data["labels"].count(1)


def test_charts_read_out_values(browser: Any, hostile: Path) -> None:
    stops = data_of(hostile / PRETRAINED)["charts"][0]
    assert len(stops) == 4
    with looking_at(browser, hostile / PRETRAINED / "report.html") as page:
        chart, told = page.locator("svg.chart").first, page.locator("output").first
        chart.scroll_into_view_if_needed()
        box, (x, text) = chart.bounding_box(), stops[1]
        assert told.text_content() == stops[-1][1]
        page.mouse.move(box["x"] + box["width"] * x / float(chart.get_attribute("viewBox").split()[2]), box["y"] + 20)
        assert told.text_content() == text
        chart.focus()
        page.keyboard.press("Home")
        assert told.text_content() == stops[0][1]


@pytest.mark.parametrize(("name", "width"), [(PRETRAINED, 360), (FINETUNED, 360), (FINETUNED, 800)])
def test_nothing_is_wider_than_the_screen(browser: Any, hostile: Path, name: str, width: int) -> None:
    with looking_at(browser, hostile / name / "report.html", width=width, touch=True) as page:
        page.locator(".map circle").nth(3).tap(force=True)
        box = page.locator(".tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_puzzles_say_what_was_picked_where() -> None:
    drawn = markup("pieces.html.jinja", "puzzle", "image7", "data:", "a", **PUZZLE)
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


def test_charts_are_to_scale_and_take_odd_values() -> None:
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
    for values in ([3.0], [3.0, 3.0], [0.0, 0.0], [1e-12, 2e-12], [1e9, -1e9]):
        for from_zero in (True, False):
            drawn, _ = drawn_chart([Line("a", list(enumerate(values)))], show=str, show_x=str, from_zero=from_zero)
            assert "nan" not in drawn
            assert "inf" not in drawn


def test_text_is_escaped() -> None:
    odd = "a<b>&\"'\x1b[31m\udcff"
    fact = markup("pieces.html.jinja", "fact", odd, None)
    assert fact == r"<div><dt>a&lt;b&gt;&amp;&#34;&#39;\x1b[31m\udcff</dt><dd></dd></div>"
    assert markup("pieces.html.jinja", "fact", fact, "<i>") == f"<div><dt>{fact}</dt><dd>&lt;i&gt;</dd></div>"
    page = Page(data={"charts": [], "a": "</script><!--\u2028"})
    written = pages.document(page, title="t", header="", footer="")
    text = re.search(r'<script id="data"[^>]*>(.*?)</script>', written)[1]
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == page.data
    with pytest.raises(ValueError, match="JSON compliant"):
        pages.document(Page(data={"a": float("nan")}), title="t", header="", footer="")


def test_the_map_depends_on_the_seed_alone_and_leaves_the_number_of_threads() -> None:
    vectors = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    vectors[:20] += 5
    before, first = torch.get_num_threads(), tsne(vectors)
    torch.set_num_threads(2)
    try:
        assert torch.equal(tsne(vectors), first)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(tsne(vectors, seed=1), first)
    for odd in (torch.ones(20, 8), torch.zeros(5, 3), torch.randn(3, 64), torch.randn(2, 2)):
        places = tsne(odd)
        assert places.shape == (len(odd), 2)
        assert places.isfinite().all()
