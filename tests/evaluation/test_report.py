"""The report is one page that shows what the run found, lets a person browse its rows, and runs nothing they hold."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from howto.evaluation.report import Content, write_report

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A row of the report; its gain is not in the order of the file."""
    return {
        "id": f"row-{number}",
        "category": ("open_qa", "summarization")[number % 2],
        "intent": f"How do I brew tea number {number}?",
        "context": "",
        "reference": "1. Boil the water.\n2. Pour it.",
        "base": "Boil it.",
        "adapter": "1. Boil the water.\n2. Drink it.",
        "base_rougeL": 0.5,
        "adapter_rougeL": (0.5 + 0.37 * number) % 1,
        "procedural": True,
        "base_stop": "length",
        "adapter_stop": "eos",
        **fields,
    }


CONTENT = Content(
    title="What the fine-tuning bought",
    verdict="+0.5222 ROUGE-L for the fine-tuned model, on 8 held-out rows.",
    facts={"Base model": "a small one", "Stemmer": "on"},
    metrics={
        "rows": 8,
        "procedural_rows": 8,
        "seeds": 3,
        "base": {
            "rougeL": 0.0934,
            "rougeL_low": 0.0851,
            "rougeL_high": 0.1023,
            "rouge1": 0.1201,
            "ended_by_eos": 1.0,
            "empty": 2,
            "length_ratio": 0.31,
            "perplexity": 21.3,
        },
        "adapter": {
            "rougeL": 0.6126,
            "rougeL_low": 0.5728,
            "rougeL_high": 0.6486,
            "rouge1": 0.6551,
            "ended_by_eos": 0.975,
            "empty": 0,
            "length_ratio": 1.02,
            "perplexity": None,
        },
        "delta": {
            "rougeL": 0.5192,
            "rougeL_low": 0.4775,
            "rougeL_high": 0.5558,
            "p_value": 0.0001,
            "wins": 4,
            "ties": 1,
            "losses": 3,
        },
        "floors": {"echo_intent": 0.1964, "echo_context": 0.3325, "random_answer": 0.1432, "nearest_answer": 0.4127},
        "ceiling": {"reference": 1.0},
    },
    slices=[
        {
            "slice": name,
            "group": group,
            "rows": 40,
            "base": 0.1,
            "adapter": 0.6,
            "delta": delta,
            "delta_low": delta - 0.1,
            "delta_high": delta + 0.1,
        }
        for name, group, delta in (
            ("category", "open_qa", 0.5),
            ("category", "summarization", -0.25),
            ("context", "none", 0.05),
        )
    ],
    train_loss=[(step, 2 / step) for step in range(1, 2001)],
    validation_loss=[(1000, 0.4), (2000, 0.3)],
    rows=[row(number) for number in range(8)],
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


class Page:
    """A report that is open in the browser."""

    def __init__(self, browser: webdriver.Chrome, folder: Path) -> None:
        self.browser = browser
        self.path = folder / "report.html"

    def open(self, content: Content, link: str = "") -> Page:
        """Write the report and open it. Fails if its script reports an error."""
        write_report(self.path, content)
        self.browser.get("about:blank")  # else a link within the page that is open would not load it anew
        self.browser.get(self.path.as_uri() + link)
        self.has_no_errors()
        return self

    def has_no_errors(self) -> None:
        assert self.browser.get_log("browser") == []

    def __call__(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return found

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, script: str) -> None:
        """Wait until an expression in the page is true."""
        WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda _: self.run(f"return {script}"))

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def table(self, selector: str) -> dict[str, list[str]]:
        """The rows of a table that hold numbers: what stands in a row's head, and in its other cells."""
        rows = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(r => [...r.cells].map(c => c.innerText.trim()))",
            f"{selector} tbody tr:has(td)",
        )
        return {head: cells for head, *cells in rows}

    def selected(self) -> str:
        """The id of the row that is selected, which list and detail agree on."""
        option = self('#list [aria-selected="true"]')
        assert self("#list").get_attribute("aria-activedescendant") == option.get_attribute("id")
        shown: str = self("#detail .about a").text
        assert option.get_attribute("data-row") == shown
        return shown

    def listed(self) -> list[str]:
        """The ids of the rows in the list, from its top, as far as they are elements."""
        options = self.run("return [...document.querySelectorAll('[role=option]')].map(o => ({...o.dataset}))")
        return [option["row"] for option in sorted(options, key=lambda option: int(option["place"]))]


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> Page:
    return Page(browser, tmp_path)


def by_gain(content: Content) -> list[str]:
    return [r["id"] for r in sorted(content.rows, key=lambda r: r["base_rougeL"] - r["adapter_rougeL"])]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", CONTENT)
    write_report(tmp_path / "b.html", replace(CONTENT))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_file_names_no_address_and_its_texts_cannot_end_the_script(tmp_path: Path) -> None:
    texts = "</script><!--<script> & \u2028\u2029 \ud800 é"
    write_report(tmp_path / "report.html", replace(CONTENT, title=texts, rows=[row(0, intent=texts)]))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url|@import)\s*[=(]?\s*["']?\s*(https?:|//)""", text)
    assert text.count("</script") == text.count("<script") == 2
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text)
    assert found and not re.search("[<>&\u2028\u2029]", found[1])
    assert json.loads(found[1])["title"] == json.loads(found[1])["rows"][0]["intent"] == texts


def test_shows_the_verdict_and_the_numbers_of_the_run(page: Page) -> None:
    page.open(CONTENT)
    assert page("#verdict").text == CONTENT.verdict
    assert page.browser.title == page("h1").text == CONTENT.title
    assert page.table("#score-table") == {
        "Base model": ["", "0.0934", "[0.0851, 0.1023]"],
        "Fine-tuned": ["", "0.6126", "[0.5728, 0.6486]"],
        "Difference": ["", "+0.5192", "[+0.4775, +0.5558]"],
        "Echo the intent": ["", "0.1964", ""],
        "Echo the context, else the intent": ["", "0.3325", ""],
        "A random training answer": ["", "0.1432", ""],
        "The nearest training answer": ["", "0.4127", ""],
        "The reference itself": ["", "1.0000", ""],
    }
    measures = page.table("#measure-table")
    assert {name: cells[:2] for name, cells in measures.items()} == {
        "ROUGE-1": ["0.1201", "0.6551"],
        "Ended by itself": ["100.0%", "97.5%"],
        "Empty": ["2", "0"],
        "Length ratio": ["0.31", "1.02"],
        "Perplexity of the references": ["21.30", ""],
    }
    assert "higher on 4 rows, the same on 1, lower on 3. The difference has p = 0.0001." in page("#score-note").text
    assert "on 8 held-out rows, 8 of which ask for steps; 3 seeds." in page("#scores-lead").text
    assert page("#facts").text.split("\n") == ["Base model", "a small one", "Stemmer", "on"]
    assert not page.all("th:not([scope])")


def test_bars_are_as_long_as_the_scores_and_the_difference_lies_between_them(page: Page) -> None:
    page.open(CONTENT)
    ends = page.run(
        "return [...document.querySelectorAll('#score-table .bar')].map(b => ['x1', 'x2'].map(a => b.getAttribute(a)))"
    )
    assert [[round(float(end.rstrip("%")), 2) for end in pair] for pair in ends[:4]] == [
        [0, 9.34],
        [0, 61.26],
        [9.34, 61.26],
        [0, 19.64],
    ]


def test_gains_of_groups_have_their_sign_and_a_colour_only_where_the_interval_excludes_zero(page: Page) -> None:
    page.open(CONTENT)
    assert page.table("#slice-table") == {
        "open_qa": ["40", "0.1000", "0.6000", "", "+0.5000", "[+0.4000, +0.6000]"],
        "summarization": ["40", "0.1000", "0.6000", "", "\u22120.2500", "[\u22120.3500, \u22120.1500]"],
        "none": ["40", "0.1000", "0.6000", "", "+0.0500", "[\u22120.0500, +0.1500]"],
    }
    assert [cell.text for cell in page.all("#slice-table .plus")] == ["+0.5000"]
    assert [cell.text for cell in page.all("#slice-table .minus")] == ["\u22120.2500"]
    assert len(page.all("#slice-table .track circle")) == 3


def test_a_group_of_fewer_than_ten_rows_is_marked_and_has_no_interval(page: Page) -> None:
    few = {**CONTENT.slices[0], "rows": 9, "delta_low": None, "delta_high": None}
    page.open(replace(CONTENT, slices=[few, CONTENT.slices[1]]))
    assert page.table("#slice-table")["open_qa"][-1] == "fewer than 10 rows"
    assert len(page.all("#slice-table tr.few")) == 1 and len(page.all("#slice-table .track .whisker")) == 1


def test_charts_show_all_rows_and_thin_out_thousands_of_losses(page: Page) -> None:
    page.open(CONTENT)
    page.wait("document.querySelectorAll('.drawing svg').length === 3")
    assert page("#histogram .keys").text.split("\n") == ["base better: 3", "even: 1", "fine-tuned better: 4"]
    drawn = page.run("return [...document.querySelectorAll('.points')].map(p => p.getAttribute('d').split('M').length)")
    assert drawn == [9, 9]
    assert 100 < page.run("return document.querySelector('.curve.train').getAttribute('d').split('L').length") <= 250
    assert "0.3000" in page("#losses .keys").text


def test_a_click_on_a_point_selects_its_row(page: Page) -> None:
    page.open(replace(CONTENT, rows=[row(0), row(1, reference="many words " * 40, adapter_rougeL=0.25)]))
    page.wait("document.querySelector('#scatter svg') !== null")
    chart = page("#scatter svg")
    points = re.findall(r"M(\S+) (\S+)h0", page("#scatter .points.adapter").get_attribute("d") or "")
    x, y = (float(place) for place in points[1])
    page.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    pointer = webdriver.ActionChains(page.browser, duration=0)
    middle = chart.size["width"] / 2, chart.size["height"] / 2
    pointer.move_to_element_with_offset(chart, round(x - middle[0]), round(y - middle[1])).perform()
    assert page("#scatter .hover").text == "0.5000 \u2192 0.2500: How do I brew tea number 1?"
    pointer.click().perform()
    assert page.selected() == "row-1"


HOSTILE = "<script>window.pwned=1</script></script><img src=x onerror='window.pwned=1'>"


def test_markup_and_control_characters_in_rows_are_shown_as_text_and_nothing_runs(page: Page) -> None:
    texts = f"{HOSTILE}\x00\x1b[31m\x7f\x9f\u202e\u2069\ttab\nline"
    fields = dict.fromkeys(("id", "category", "intent", "context", "reference", "adapter"), texts)
    page.open(
        replace(
            CONTENT,
            title=HOSTILE,
            verdict=HOSTILE,
            facts={HOSTILE: HOSTILE},
            slices=[{**CONTENT.slices[0], "slice": HOSTILE, "group": HOSTILE}],
            rows=[row(0, **fields, base="", base_stop=HOSTILE)],
        )
    )
    seen = f"{HOSTILE}\\u0000\\u001b[31m\\u007f\\u009f\\u202e\\u2069\ttab\nline"
    shown = page.run("return [...document.querySelectorAll('#detail .text')].map(e => e.textContent)")
    assert shown == [seen, seen, "(empty)", seen]
    assert page("#verdict").text == HOSTILE
    assert page("#detail .answer.adapter .text").value_of_css_property("white-space-collapse") == "preserve"
    assert page.run("return window.pwned ?? null") is None
    assert page.all("img") == [] and len(page.all("script")) == 2


ONCLICK = '<b onclick="window.pwned = 1">b</b>'


def test_no_script_but_its_own_runs_in_the_page(page: Page) -> None:
    page.open(CONTENT)
    page.run("const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s)")
    page.run("const d = document.createElement('div'); d.innerHTML = arguments[0]; d.firstChild.click()", ONCLICK)
    assert page.run("return window.pwned ?? null") is None
    assert "Content Security Policy" in str(page.browser.get_log("browser"))


def test_no_request_leaves_the_page(page: Page) -> None:
    page.open(CONTENT)
    page.wait("document.querySelectorAll('.drawing svg').length === 3")
    assert page.run("return performance.getEntriesByType('resource')") == []


def test_rows_stand_in_file_order_until_a_button_sorts_them(page: Page) -> None:
    page.open(CONTENT)
    assert page.listed() == [r["id"] for r in CONTENT.rows]
    order = by_gain(CONTENT)
    for name, first in (("best", order[0]), ("worst", order[-1])):
        button = page(f"[data-sort={name}]")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.listed()[0] == page.selected() == first
    page("[data-sort=score]").click()
    highest = page.listed()
    assert highest == [r["id"] for r in sorted(CONTENT.rows, key=lambda r: -r["adapter_rougeL"])]
    page("[data-sort=score]").click()
    assert page.listed() == highest[::-1]
    page("[data-sort=file]").click()
    assert page.listed() == [r["id"] for r in CONTENT.rows]
    assert len(page.all('[data-sort][aria-pressed="true"]')) == 1


def test_filters_by_category_and_by_a_word_in_any_text_and_says_how_many_rows_are_left(page: Page) -> None:
    rows = [*CONTENT.rows, row(8, adapter="Then the ZEBRA drinks.")]
    page.open(replace(CONTENT, rows=rows))
    assert page("#count").text == "9 of 9 rows" and page("#count").get_attribute("role") == "status"
    Select(page("#category")).select_by_visible_text("summarization (4)")
    assert page("#count").text == "4 of 9 rows"
    assert page.listed() == ["row-1", "row-3", "row-5", "row-7"] and page.selected() == "row-1"
    page("#search").send_keys("zebra")
    assert page("#count").text == "0 of 9 rows" and page("#list").text == "No row matches."
    assert page("#detail").text == ""
    Select(page("#category")).select_by_index(0)
    assert page("#count").text == "1 of 9 rows"
    assert page.selected() == "row-8"


def test_keys_move_through_rows_search_and_jump_to_gains_and_regressions(page: Page) -> None:
    page.open(CONTENT)
    order = by_gain(CONTENT)
    page("#list").click()
    page.press(Keys.HOME)
    page.press(Keys.ARROW_DOWN, "j", "j", Keys.ARROW_UP)
    assert page.selected() == "row-2"
    page.press("k")
    assert page.selected() == "row-1"
    page.press(Keys.END, "j")
    assert page.selected() == "row-7"
    page.press("w")
    assert page.selected() == order[-1]
    page.press("g")
    assert page.selected() == order[0]
    page.press("/", "j")
    assert page("#search").get_attribute("value") == "j", "in the search field a letter is a letter"
    page.press(Keys.BACKSPACE, "number 5", Keys.ENTER)
    assert page.selected() == "row-5"
    assert page.run("return document.activeElement.id") == "list"


def test_keys_can_be_turned_off(page: Page) -> None:
    page.open(CONTENT)
    page("#shortcuts").click()
    page.press("j", "w", "/")
    assert page.selected() == "row-0" and page.run("return document.activeElement.id") == "shortcuts"


def test_the_address_links_to_the_selected_row(page: Page) -> None:
    page.open(replace(CONTENT, rows=[*CONTENT.rows, row(8, id="ä/b c")]), "#row=row-6")
    assert page.selected() == "row-6"
    page("[data-row=row-3]").click()
    assert page.selected() == "row-3" and page.browser.current_url.endswith("#row=row-3")
    page("#search").send_keys("number 3")
    page.run("location.hash = '#row=' + encodeURIComponent('ä/b c')")
    page.wait("document.querySelector('#detail .about a').textContent === 'ä/b c'")
    assert page("#search").get_attribute("value") == "", "a link is followed whatever the filters were"


def test_marks_the_words_that_an_answer_shares_in_order_with_the_reference(page: Page) -> None:
    fields = {
        "reference": "Boil the water.\nPour it slowly.",
        "adapter": "Pour. BOIL the milk,\nthen pour it.",
        "base": "No.",
    }
    page.open(replace(CONTENT, rows=[row(0, **fields)]))
    assert [mark.text for mark in page.all("mark")] == ["BOIL the", "pour it"]
    assert page("#detail .answer.adapter .text").text == fields["adapter"]
    page("#marking").click()
    assert page.all("mark") == []


def test_a_thousand_long_rows_keep_the_number_of_elements_small(page: Page) -> None:
    long = "Stir the pot and wait for it. " * 70
    rows = [row(n, context=long, reference=long, base=long, adapter=long, adapter_rougeL=n / 1000) for n in range(1000)]
    rows[777]["base"] += "needle"
    page.open(replace(CONTENT, rows=rows))
    page.wait("document.querySelectorAll('.drawing svg').length === 3")

    def elements() -> int:
        return int(page.run("return document.querySelectorAll('*').length"))

    before = elements()
    assert before < 700
    page("[data-sort=best]").click()
    assert page.listed()[0] == page.selected() == "row-999"
    page.press(*"jjjjj", Keys.END)
    assert page.selected() == "row-0"
    page.run("document.getElementById('list').scrollTop = 30000")
    page.wait("document.querySelector('#list [data-row=row-530]')")
    assert page.selected() == "row-0", "the selected option is there even when it is out of sight"
    assert elements() < before + 100
    page("#search").send_keys("needle")
    assert page("#count").text == "1 of 1,000 rows" and page.selected() == "row-777"


def test_dark_mode_turns_the_page_dark_and_its_text_light(page: Page) -> None:
    def lightness(name: str) -> float:
        colour = page("body").value_of_css_property(name)
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / (3 * 255)

    page.open(CONTENT)
    found = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        found[scheme] = lightness("background-color"), lightness("color")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found["light"][0] > 0.9 and found["light"][1] < 0.2
    assert found["dark"][0] < 0.2 and found["dark"][1] > 0.8


@pytest.mark.parametrize("width", [400, 700, 900])
def test_a_narrow_window_has_nothing_beyond_its_edge(page: Page, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        unbroken = "x" * 500
        rows = [row(0, base=unbroken, intent=unbroken, category=unbroken)]
        page.open(replace(CONTENT, rows=rows, slices=[{**CONTENT.slices[0], "group": unbroken}]))
        page.wait("document.querySelectorAll('.drawing svg').length === 3")
        assert page.run("return document.documentElement.scrollWidth") == width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_was_not_measured_is_not_shown(page: Page) -> None:
    metrics = {"rows": 8, "base": {"rougeL": 0.1}, "adapter": {"rougeL": 0.2, "rougeL_low": None}}
    page.open(replace(CONTENT, metrics=metrics))
    assert page.table("#score-table") == {"Base model": ["", "0.1000", ""], "Fine-tuned": ["", "0.2000", ""]}
    assert not page("#measure-table").is_displayed()
    assert page("#score-note").text == ""
    assert "undefined" not in page("body").text and "NaN" not in page("body").text


def test_empty_lists_hide_what_would_show_them(page: Page) -> None:
    page.open(replace(CONTENT, metrics={}, facts={}, slices=[], train_loss=[], validation_loss=[], rows=[]))
    assert page("#verdict").is_displayed()
    for hidden in ("#score-table", "#slices", "#charts", "#rows", "footer"):
        assert not page(hidden).is_displayed()
    assert [link.text for link in page.all("nav a") if link.is_displayed()] == ["Scores"]


def test_rows_without_losses_and_losses_without_rows_are_shown(page: Page) -> None:
    page.open(replace(CONTENT, train_loss=[], validation_loss=[]))
    assert page("#scatter").is_displayed() and not page("#losses").is_displayed()
    page.open(replace(CONTENT, rows=[], train_loss=[(1, float("nan")), (2, 0.5)], validation_loss=[]))
    page.wait("document.querySelector('#losses .curve')")
    assert not page("#scatter").is_displayed()
    assert "NaN" not in str(page("#losses .curve").get_attribute("d"))
    page.has_no_errors()
