"""The web view in a real browser, driven as a person drives it: O-D1, O-D5, O-D6, O-A6."""

import json
import math
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.browser import Browser, program
from tests.support.run_files import Written
from workloads.monitor.html.web import open_server

pytestmark = pytest.mark.smoke
FIRST, SECOND = "20260101-120000-abcd", "20260102-120000-ef01"
STEPS = 240
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`\x1b[31m\u202e\u05d0"
NAME = "x<img src=x onerror=alert(3)>\"'&" + 100 * "é"
LOSSES = [1 + 3 * math.exp(-step / 60) for step in range(1, STEPS + 1)]
CHART = ".charts.live .chart"
DRAWN = f"document.querySelector('{CHART} .main')"
REFRESH = "document.dispatchEvent(new Event('visibilitychange'))"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def first(root: Path) -> Written:
    """A run that goes on."""
    found = Written(root, FIRST).begun(STEPS, world_size=1).losses(LOSSES)
    found.run.eval_metric({"step": STEPS, "eval_loss": 1.25})
    # Its rank has ended: no warning of a late heartbeat comes, however slow the machine is.
    found.beat(0, node=0, step=STEPS, phase="done", code=0)
    return found


@pytest.fixture(scope="module")
def address(root: Path, first: Written) -> Iterator[str]:
    """The web view of three runs: `first`, one of another setting, and one of hostile texts."""
    second = Written(root, SECOND, rate="1e-4").begun(STEPS, world_size=1).losses(LOSSES)
    second.run.event("finished", code=0)
    hostile = Written(root, NAME, EVIL.replace("/", "")).begun(40).losses([2.0, 1.0, 0.5])
    hostile.beat(0, host=EVIL, phase=EVIL)
    hostile.run.event(EVIL, **{EVIL: EVIL})
    hostile.run.event("failed", code=1, reason=EVIL + 300 * "very long ")
    server = open_server(root, None, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    if program() is None:
        pytest.skip("NOT TESTED, the web view in a browser: chromium is not on PATH")
    found = Browser(1280, 900)
    yield found
    found.close()


@pytest.fixture
def browser(one_browser: Browser, address: str) -> Iterator[Browser]:
    """The browser; nothing may have gone wrong in it, and nothing was fetched from elsewhere."""
    one_browser.problems.clear()
    one_browser.requested.clear()
    one_browser.resize(1280, 900)
    yield one_browser
    assert one_browser.problems == []
    assert [url for url in one_browser.requested if not url.startswith(address)] == []


def texts(browser: Browser, selector: str) -> list[str]:
    script = f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    found: list[str] = browser.evaluate(script)
    return found


def shown_runs(browser: Browser) -> list[str]:
    return texts(browser, "table.runs tbody tr:not([hidden]) td[data-title=run]")


def test_the_pointer_shows_exact_values_in_all_charts(browser: Browser, address: str) -> None:
    browser.open(f"{address}/run/demo/{FIRST}", DRAWN)
    browser.hover(CHART, 0.5)
    (tip,) = texts(browser, ".tip:not([hidden])")
    step, value, held_out = re.fullmatch(r"step (\d{1,3}?)(\d\.\d+)held-out (.*)", tip).groups()  # type: ignore[union-attr]
    assert float(value) == pytest.approx(LOSSES[int(step) - 1], rel=1e-5)
    assert held_out.split() == ["1.25", "at", "step", "240"]
    assert "0.001" in texts(browser, "figure .readout")[1]  # the learning rate at the same step
    browser.press("Escape")


def test_a_range_is_dragged_and_left_again_and_a_scale_is_logarithmic(
    browser: Browser, address: str
) -> None:
    browser.open(f"{address}/run/demo/{FIRST}", DRAWN)
    whole = texts(browser, f"{CHART} .axis")
    browser.drag(CHART, 0.3, 0.6)
    browser.wait("!document.querySelector('.tools button').disabled")
    assert texts(browser, f"{CHART} .axis") != whole
    browser.click(CHART, count=2)
    assert texts(browser, f"{CHART} .axis") == whole
    browser.click("figcaption button")
    assert browser.evaluate("document.querySelector('figcaption button').ariaPressed") == "true"
    assert texts(browser, f"{CHART} .axis") != whole
    browser.click("figcaption button")


def test_arrow_keys_move_a_cursor(browser: Browser, address: str) -> None:
    browser.open(f"{address}/run/demo/{FIRST}", DRAWN)
    browser.evaluate(f"document.querySelector('{CHART}').focus()")
    for _ in range(3):
        browser.press("ArrowLeft")
    assert texts(browser, ".tip:not([hidden])")[0].startswith(f"step {STEPS - 2}")


def test_the_list_is_sorted_searched_and_compared(browser: Browser, address: str) -> None:
    browser.open(address, "document.querySelector('.tools input')")
    assert len(shown_runs(browser)) == 3
    browser.click("table.runs th:nth-child(2) button")
    first, second = f"demo/{FIRST}", f"demo/{SECOND}"
    assert shown_runs(browser)[:2] == [first, second]
    browser.click("table.runs th:nth-child(2) button")
    assert shown_runs(browser)[-2:] == [second, first]
    browser.press("/")
    browser.type("demo/2026")
    assert shown_runs(browser) == [second, first]
    for row in (first, second):
        browser.click(f"table.runs tbody tr[data-run='{row}'] input")
    browser.click("a.button")
    browser.wait("document.querySelector('.legend') && document.querySelector('.live .several')")
    assert "optim.learning_rate" in "".join(texts(browser, "[data-part=settings]"))
    browser.hover(CHART, 0.4)
    (tip,) = texts(browser, ".tip:not([hidden])")
    assert first in tip and second in tip
    browser.click(".legend button")
    assert len(texts(browser, f"figure:first-child {CHART.split()[1]} g .main")) == 1


def test_what_is_looked_at_stays_as_it_is(browser: Browser, address: str, first: Written) -> None:
    """New values come without a lost focus, a lost selection or a jump."""
    browser.open(f"{address}/run/demo/{FIRST}", DRAWN)
    browser.wait("document.querySelectorAll('.charts.live').length == 2")  # with this machine's
    browser.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
    browser.evaluate(
        "window.jumps = []; new PerformanceObserver(list => list.getEntries().forEach(entry =>"
        "jumps.push(...entry.sources.map(({node}) => node?.textContent?.slice(0, 60)))))"
        ".observe({type: 'layout-shift'});"
        "window.kept = document.querySelector('[data-part=ranks] td');"
        "getSelection().selectAllChildren(document.querySelector('h1 bdi')); 0"
    )
    first.losses([0.123456], first=STEPS + 1)
    browser.evaluate(REFRESH)
    browser.wait("document.querySelector('[data-part=values]').textContent.includes('0.1235')")
    assert browser.evaluate("window.kept.isConnected")
    assert browser.evaluate("String(getSelection())") == f"demo/{FIRST}"
    assert browser.evaluate("window.jumps") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_are_shown_and_fit(browser: Browser, address: str, width: int) -> None:
    """O-D5, O-A14: nothing of a run is executed, and a page is as wide as its window."""
    browser.resize(width, 844, mobile=width < 600)
    browser.open(address, "document.querySelector('.tools input')")
    link = browser.evaluate(
        "[...document.querySelectorAll('table.runs a')].map(a => a.getAttribute('href'))"
        ".find(href => href.includes('onerror'))"
    )
    query = f"run={link.removeprefix('/run/')}&run=demo/{FIRST}"
    for path in ("/", link, f"/compare?{query}", f"/run/demo/{SECOND}"):
        browser.open(address + path, "document.readyState == 'complete'")
        browser.evaluate(REFRESH)
        if path != "/":
            browser.wait(DRAWN)
            browser.hover(CHART, 0.9)
        assert browser.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
        over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.evaluate(over) <= 0, path


def test_a_run_that_was_removed_is_told(browser: Browser, address: str, root: Path) -> None:
    gone = Written(root, "20260103-120000-0000").begun().losses([2.0, 1.0])
    browser.open(f"{address}/run/demo/{gone.run.id}", DRAWN)
    shutil.rmtree(gone.run.path)
    browser.evaluate(REFRESH)
    browser.wait("document.getElementById('note').textContent.includes('no longer there')")
    browser.problems.clear()  # the browser itself notes the 404
