"""Pages in a real browser: nothing executes, nothing is fetched, nothing sticks out, all works."""

import chromium
import pytest
from records import HOSTILE, stored, value

from bench.report import book, plots

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="needs Chromium")
SHAPES = [(1280, False), (1280, True), (390, False), (390, True)]
WIDTHS = """[...document.querySelectorAll('body *')].filter(e =>
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
  && !e.closest('.scroll, pre, aside, dd')
).map(e => e.outerHTML.slice(0, 120))"""
CONTRAST = """(() => {
  const light = (c) => c.match(/\\d+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const e of document.querySelectorAll('p, td, th, li, a, summary, button, dt, dd, span')) {
    if (!e.checkVisibility() || !e.textContent.trim()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(e.outerHTML.slice(0, 120));
  }
  return found.slice(0, 5);
})()"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
TABLE = "document.querySelector('#tables table.data')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name: of hostile names, of ordinary ones, and the first page of several tasks."""
    folder = tmp_path_factory.mktemp("pages")
    ok = [value(name, build=name) for name in ("truth", "constant")]
    others = [value(text, build="tweedie", shift=k) for k, text in enumerate(HOSTILE)]
    failed = [value(f"{text} too", status="oom_host", reason=text) for text in HOSTILE]
    tweedies = [value(f"tweedie {k}", shift=k) for k in range(5)]
    usual = [*ok, *tweedies, value("big", status="oom_gpu")]
    several = [*usual, *(value(text, status="error", task="interface") for text in HOSTILE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FIGURES", {"rmse": plots.FIGURES["rmse"]})
        made = {"usual": usual, "hostile": [*ok, *others, *failed], "several": several}
        for name, records in made.items():
            book.write(stored(folder / name / "store", records), folder / name)
    return {name: folder / name / "index.html" for name in made}


@pytest.mark.parametrize("name", ["usual", "hostile", "several"])
@pytest.mark.parametrize(("width", "dark"), SHAPES)
def test_pages_are_quiet_fit_and_can_be_read(browser, pages, name, width, dark):
    browser.show(pages[name], width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.run("document.title").startswith("StitchVM-Bench")
    browser.run("document.querySelectorAll('main details').forEach(d => { d.open = true })")
    assert browser.run(OVERFLOW) <= 0
    assert browser.run(WIDTHS) == []
    assert browser.run(CONTRAST) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_every_cell_opens_fits_and_closes(browser, pages, width):
    browser.show(pages["hostile"], width)
    anchors = browser.run("[...document.querySelectorAll('aside.cell')].map(e => e.id)")
    assert len(anchors) == 2 + 2 * len(HOSTILE)
    shown = "[...document.querySelectorAll('aside.cell')].filter(e => e.checkVisibility())"
    for anchor in anchors:
        browser.run(f"location.hash = '#{anchor}'")
        browser.until(f"{shown}.map(e => e.id).join() === '{anchor}'")
        assert browser.run(f"{shown}.every(e => e.scrollWidth <= e.clientWidth)")
    browser.key("Escape")
    browser.until(f"{shown}.length === 0")
    assert browser.complaints() == []
    assert browser.run("document.title").startswith("StitchVM-Bench")


def test_a_number_opens_the_cell_of_its_row_and_the_focus_comes_back(browser, pages):
    browser.show(pages["usual"])
    browser.run("document.querySelectorAll('#tables details').forEach(d => { d.open = true })")
    browser.run(f"{TABLE}.tBodies[0].rows[3].cells[4].click()")
    cell = browser.run(f"{TABLE}.tBodies[0].rows[3].dataset.cell")
    browser.until("document.activeElement.matches('aside.cell')")
    assert browser.run("document.activeElement.id") == f"cell-{cell}"
    assert "Specification" in browser.run("document.activeElement.textContent")
    browser.run("document.activeElement.querySelector('.close').click()")
    browser.until(f"document.activeElement.getAttribute('href') === '#cell-{cell}'")


def column(browser, number):
    rows = f"[...{TABLE}.tBodies[0].rows].filter(r => !r.hidden)"
    return browser.run(f"{rows}.map(r => r.cells[{number}].textContent)")


def test_tables_sort_by_numbers_from_the_keyboard(browser, pages):
    browser.show(pages["usual"])
    browser.run("document.querySelectorAll('#tables details').forEach(d => { d.open = true })")
    heads = browser.run(f"[...{TABLE}.tHead.rows[0].cells].map(h => h.textContent)")
    number = heads.index("RMSE")
    button = f"{TABLE}.tHead.rows[0].cells[{number}].querySelector('button')"
    for pressed, sign in ((1, 1), (2, -1)):
        browser.run(f"{button}.focus()")
        browser.key("Enter")
        kind = {1: "ascending", -1: "descending"}[sign]
        browser.until(f"{button}.parentElement.getAttribute('aria-sort') === '{kind}'")
        texts = column(browser, number)
        known = [float(text.split()[0]) for text in texts if text != "\u2013"]
        assert known == sorted(known, reverse=sign < 0), pressed
        assert len(known) == 14
        assert texts[14:] == ["\u2013"] * 2  # what is missing stands last, either way


def test_tables_are_filtered_by_words(browser, pages):
    browser.show(pages["usual"])
    browser.run("document.querySelectorAll('#tables details').forEach(d => { d.open = true })")
    field = "document.querySelector('#tables .filter input')"
    browser.run(f"{field}.value = 'tweedie 0.75'; {field}.dispatchEvent(new Event('input'))")
    assert column(browser, 1) == [f"tweedie {k}" for k in range(5)]
    assert browser.run("document.querySelector('#tables .filter output').textContent") == "5 of 16"
    browser.run(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert len(column(browser, 1)) == 16


def test_without_scripts_all_is_there(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(pages["usual"])
        browser.call("Page.navigate", url=f"{pages['usual'].as_uri()}#cells")
        text = browser.run("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "big (OOM)" in browser.run("document.querySelector('#tables').textContent")
    assert "All 8 cells" in text
    assert browser.run("document.querySelectorAll('th button').length") == 0
