"""The report shows what the run found, lets a person browse its rows, and runs nothing that is in them."""

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
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A row of the report. The gains are not in the order of the numbers."""
    names = {"id": f"row-{number}", "category": ("open_qa", "summarization")[number % 2], "procedural": True}
    texts = {"intent": f"How do I brew tea number {number}?", "context": "", "reference": "1. Boil it.\n2. Pour it."}
    base = {"base": "Boil it.", "base_rougeL": 0.5, "base_stop": "length"}
    adapter = {"adapter": "1. Boil it.", "adapter_rougeL": (0.5 + 0.37 * number) % 1, "adapter_stop": "eos"}
    return {**names, **texts, **base, **adapter, **fields}


def group(of: str, name: str, delta: float, low: float | None, high: float | None) -> dict[str, Any]:
    numbers = {"rows": 40, "base": 0.1, "adapter": 0.6, "delta": delta, "delta_low": low, "delta_high": high}
    return {"slice": of, "group": name, **numbers}


def rouge_l(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"rougeL": mean, "rougeL_low": low, "rougeL_high": high}


CONTENT = Content(
    title="What the fine-tuning bought",
    verdict="+0.5192 ROUGE-L for the fine-tuned model, on 8 held-out rows.",
    cost="On general text, perplexity rises.",
    tokenizer="rouge_score",
    facts={"Base model": "a small one", "Stemmer": "on"},
    metrics={
        **{"rows": 8, "procedural_rows": 8, "seeds": 3},
        "base": {**rouge_l(0.0934, 0.0851, 0.1023), "rouge1": 0.1201, "empty": 2},
        "adapter": {**rouge_l(0.6126, 0.5728, 0.6486), "rouge1": None, "ended_by_eos": 0.975},
        "delta": {**rouge_l(0.5192, 0.4775, 0.5558), "p_value": 0.0001, "wins": 4, "ties": 1, "losses": 3},
        "baselines": {"echo_intent": 0.1964, "nearest_answer": 0.4127},
        "ceiling": {"reference": 1.0},
        "general": {
            **{"passages": 24, "tokens": 3500, "base": {"perplexity": 20.125}, "adapter": {"perplexity": 21.3}},
            "delta": {
                "perplexity_change": 0.0584,
                "perplexity_change_low": -0.01,
                "perplexity_change_high": 0.07,
            },
        },
        "chat": {
            **{"questions": 3, "checkable": 2, "base": {"correct": 1.0, "numbered": 0.0}},
            "adapter": {"correct": 0.5, "numbered": 1 / 3},
        },
    },
    slices=[
        group("category", "open_qa", 0.5, 0.4, 0.6),
        group("category", "summarization", -0.25, -0.35, -0.15),
        group("context", "none", 0.05, -0.05, 0.15),
        group("context", "rare", 0.07, None, None),
    ],
    train_loss=[(step, 2 / step) for step in range(1, 2001)],
    validation_loss=[(1000, 0.4), (2000, 0.3)],
    validation_rouge_l=[(1000, 0.21), (2000, 0.25)],
    rows=[row(number) for number in range(8)],
    chat=[
        {"question": "2 + 2?", "accepted": ["4", "four"], "base": "4", "adapter": "1. Count.\n2. Add."}
        | {"base_correct": True, "adapter_correct": False},
        {"question": "Hello!", "accepted": [], "base": "Hello!", "adapter": ""},
    ],
)
BY_GAIN = [r["id"] for r in sorted(CONTENT.rows, key=lambda r: r["base_rougeL"] - r["adapter_rougeL"])]


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
        """Write the report and open it with all charts. Fails if its script reports an error."""
        write_report(self.path, content)
        self.browser.get("about:blank")  # else a link within the open page would not load it again
        self.browser.get(self.path.as_uri() + link)
        self.wait("document.querySelectorAll('figure:not([hidden]) .drawing:not(:has(svg))').length === 0")
        assert self.browser.get_log("browser") == []
        return self

    def __call__(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda _: self.run(f"return {condition}"))

    def table(self, selector: str) -> dict[str, list[str]]:
        """The head and the other cells of each row with numbers."""
        rows = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(r => [...r.cells].map(c => c.innerText.trim()))",
            f"{selector} tbody tr:has(td)",
        )
        return {head: cells for head, *cells in rows}

    def selected(self) -> str:
        """The id of the selected row, which list and detail agree on."""
        option = self('#list [aria-selected="true"]')
        assert self("#list").get_attribute("aria-activedescendant") == option.get_attribute("id")
        assert option.get_attribute("data-row") == self("#detail .about a").text
        return str(option.get_attribute("data-row"))

    def listed(self) -> list[str]:
        """The ids of the rows in the list that are elements, from its top."""
        options = self.run("return [...document.querySelectorAll('[role=option]')].map(o => ({...o.dataset}))")
        return [option["row"] for option in sorted(options, key=lambda option: int(option["place"]))]


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> Page:
    return Page(browser, tmp_path)


def test_the_file_names_no_address_and_its_texts_cannot_end_the_script(tmp_path: Path) -> None:
    texts = "</script><!--<script> & \u2028\u2029 \ud800 é"
    write_report(tmp_path / "report.html", replace(CONTENT, title=texts, rows=[row(0, intent=texts)]))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url|@import)\s*[=(]?\s*["']?\s*(https?:|//)""", text)
    assert text.count("</script") == text.count("<script") == 2
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text)
    assert found and not re.search("[<>&\u2028\u2029]", found[1])
    assert json.loads(found[1])["title"] == json.loads(found[1])["rows"][0]["intent"] == texts


def test_it_shows_the_verdict_the_numbers_and_the_charts_of_the_run_and_requests_nothing(page: Page) -> None:
    page.open(CONTENT)
    assert page("#verdict").text == CONTENT.verdict
    assert page.browser.title == page("h1").text == CONTENT.title
    assert page.table("#score-table") == {
        "Base model": ["", "0.0934", "[0.0851, 0.1023]"],
        "Fine-tuned": ["", "0.6126", "[0.5728, 0.6486]"],
        "Difference": ["", "+0.5192", "[+0.4775, +0.5558]"],
        "An echo of the intent": ["", "0.1964", ""],
        "The nearest training answer": ["", "0.4127", ""],
        "The reference itself": ["", "1.0000", ""],
    }
    measures = {name: cells[:2] for name, cells in page.table("#measure-table").items()}
    assert measures == {"ROUGE-1": ["0.1201", ""], "Ended by itself": ["", "97.5%"], "Empty": ["2", ""]}
    ends = "return [...document.querySelectorAll('#score-table .bar')].map(b => parseFloat(b.getAttribute('x2')))"
    assert page.run(ends) == pytest.approx([9.34, 61.26, 61.26, 19.64, 41.27, 100])
    note = "higher on 4 rows, the same on 1, lower on 3. The difference has p = 0.0001. Another training seed"
    assert note in page("#score-note").text
    assert "on 8 held-out rows, 8 of which ask for steps; 3 seeds." in page("#scores-lead").text
    assert page("#facts").text.split("\n") == ["Base model", "a small one", "Stemmer", "on"]

    assert page("#histogram .keys").text.split("\n") == ["base better: 3", "even: 1", "fine-tuned better: 4"]
    assert str(page("#scatter .points.adapter").get_attribute("d")).count("M") == 8
    assert 100 < str(page("#losses .curve.train").get_attribute("d")).count("L") < 250
    assert "0.3000" in page("#losses .keys").text
    assert "0.2500" in page("#answers-curve .keys").text
    assert len(page.browser.find_elements("css selector", "#answers-curve .dot")) == 2
    assert page.run("return performance.getEntriesByType('resource')") == []

    # Gains of groups have a sign, and a colour only if the interval excludes zero.
    assert page.table("#slice-table") == {
        "open_qa": ["40", "0.1000", "0.6000", "", "+0.5000", "[+0.4000, +0.6000]"],
        "summarization": ["40", "0.1000", "0.6000", "", "\u22120.2500", "[\u22120.3500, \u22120.1500]"],
        "none": ["40", "0.1000", "0.6000", "", "+0.0500", "[\u22120.0500, +0.1500]"],
        "rare": ["40", "0.1000", "0.6000", "", "+0.0700", "too few rows"],
    }
    assert page.texts("#slice-table .plus") == ["+0.5000"] and page.texts("#slice-table .minus") == ["\u22120.2500"]
    assert len(page.texts("#slice-table .whisker")) == 3 and len(page.texts("#slice-table tr.few")) == 1


def test_it_shows_what_the_fine_tuning_cost_and_plain_questions_with_both_answers(page: Page) -> None:
    page.open(CONTENT)
    assert page("#cost").text == CONTENT.cost
    of_text = "+5.8%, interval [\u22121.0%, +7.0%]; 24 passages, 3,500 tokens; less is better"
    assert page.table("#cost-table") == {
        "Perplexity of general text": ["20.13", "21.30", of_text],
        "With the right word": ["100.0%", "50.0%", "answers to the 2 questions that have one"],
        "Numbered lists": ["0.0%", "33.3%", "of the answers to 3 questions that ask for none"],
    }
    assert not page("#chat .pair").is_displayed()
    page("#chat summary").click()
    assert page.texts("#chat .pair") == [
        "2 + 2?\nBase \u2713 right word\n4\nFine-tuned \u2717 no right word\n1. Count.\n2. Add.\nAccepted: 4, four",
        "Hello!\nBase\nHello!\nFine-tuned\n(empty)",
    ]


HOSTILE = "<script>window.pwned=1</script></script><img src=x onerror='window.pwned=1'>"


def test_markup_and_control_characters_in_rows_are_shown_as_text_and_nothing_runs(page: Page) -> None:
    texts = f"{HOSTILE}\x00\x1b[31m\x7f\x9f\u202e\u2069\ttab\nline"
    fields = dict.fromkeys(("id", "category", "intent", "context", "reference", "adapter"), texts)
    rows = [row(0, **fields, base="", base_stop=HOSTILE)]
    slices = [group(HOSTILE, HOSTILE, 0.5, 0.4, 0.6)]
    chat = [dict.fromkeys(("question", "base", "adapter"), texts) | {"accepted": [HOSTILE]}]
    heads: dict[str, Any] = {"title": HOSTILE, "verdict": HOSTILE, "cost": HOSTILE, "facts": {HOSTILE: HOSTILE}}
    page.open(replace(CONTENT, **heads, slices=slices, rows=rows, chat=chat))
    seen = f"{HOSTILE}\\u0000\\u001b[31m\\u007f\\u009f\\u202e\\u2069\ttab\nline"
    shown = page.run("return [...document.querySelectorAll('#detail .text')].map(e => e.textContent)")
    assert shown == [seen, seen, "(empty)", seen]
    shown = page.run("return [...document.querySelectorAll('#chat h3, #chat .text')].map(e => e.textContent)")
    assert shown == [seen, seen, seen] and page("#cost").text == HOSTILE
    assert page("#verdict").text == HOSTILE
    assert page("#detail .answer.adapter .text").value_of_css_property("white-space-collapse") == "preserve"
    assert page.texts("img") == [] and len(page.texts("script")) == 2
    # Its policy blocks scripts even if they got into the page.
    page.run("const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s)")
    page.run("const d = document.createElement('div'); d.innerHTML = arguments[0]", HOSTILE)
    assert page.run("return window.pwned ?? null") is None
    assert "Content Security Policy" in str(page.browser.get_log("browser"))


def test_steps_have_a_table_and_each_step_of_a_row_names_the_one_that_it_matches(page: Page) -> None:
    metrics = {
        "base": {"step_coverage": 0.25, "step_coverage_low": 0.2, "step_coverage_high": 0.3, "step_coverage_rows": 8},
        "adapter": {"step_coverage": 0.5, "step_coverage_rows": 8, "step_superfluous": 0.5, "step_superfluous_rows": 7},
        "delta": {
            **{"step_coverage": 0.25, "step_coverage_low": 0.1, "step_coverage_high": 0.4},
            **{"step_superfluous": -0.2, "step_superfluous_low": -0.3, "step_superfluous_high": -0.1},
        },
    }
    scores = {"coverage": 0.5, "order": None, "superfluous": 2 / 3}
    steps: dict[str, Any] = {
        "base": {**scores, "matches": [[3, None], [5, 1]]},
        "adapter": {**scores, "coverage": 1, "order": -1, "superfluous": 0, "matches": [[1, 2], [2, 1]]},
    }
    other = {**steps, "adapter": {**steps["adapter"], "reference": 1}}
    texts = {"reference": "1. Boil it.\n\n2. Pour it.", "base": f"So:\n\n1. {HOSTILE}\nslowly\n2. Boil it.\n\nEnjoy."}
    rows = [row(0, **texts, adapter="1. Pour it.\n2. Boil it.", steps=steps), row(1, steps=other), row(2)]
    page.open(replace(CONTENT, metrics={**CONTENT.metrics, **metrics}, rows=rows))
    table = page.table("#step-table")
    assert [cell.split() for cell in table["Covered"][:3]] == [
        ["0.2500", "[0.2000,", "0.3000]"],
        ["0.5000"],
        ["+0.2500", "[+0.1000,", "+0.4000]"],
    ]
    assert table["Superfluous"][0] == "" and table["Superfluous"][3].endswith("on 0 and 7 rows")
    assert "In order" not in table
    assert page.texts("#step-table .plus") == ["+0.2500", "\u22120.2000"] and page.texts("#step-table .minus") == []

    notes = "return [...document.querySelectorAll(`#detail .answer${arguments[0]} .text`)].map(e => e.textContent)"
    reference, base, adapter = page.run(notes, "")
    assert reference == (
        "1. Boil it. base model: \u2192\u00a02 fine-tuned: \u2192\u00a02\n\n"
        "2. Pour it. base model: missing fine-tuned: \u2192\u00a01"
    )
    assert base == (
        f"So:\n\n1. {HOSTILE} base model: superfluous\nslowly\n2. Boil it. base model: \u2192\u00a01\n\nEnjoy."
    )
    assert adapter == "1. Pour it. fine-tuned: \u2192\u00a02\n2. Boil it. fine-tuned: \u2192\u00a01"
    assert page("#detail .answer.base footer").text.endswith("covers 50.0% of the steps, 66.7% superfluous")
    page("#marking").click()
    assert page.run(notes, "") == [reference, base, adapter], "the marks do not move the notes"
    page("#list").send_keys("j")
    assert page.run(notes, "")[0] == "1. Boil it. base model: \u2192\u00a02\n2. Pour it. base model: missing"
    assert page("#detail .answer.adapter footer").text.endswith("order \u22121.0000, 0.0% superfluous, reference 2")
    page("#list").send_keys("j")
    assert page.run(notes, "")[0] == "1. Boil it.\n2. Pour it."


def test_buttons_sort_the_rows_and_keys_move_search_and_jump_to_gains_and_regressions(page: Page) -> None:
    page.open(CONTENT)
    in_file = [r["id"] for r in CONTENT.rows]
    by_score = [r["id"] for r in sorted(CONTENT.rows, key=lambda r: -r["adapter_rougeL"])]
    assert page.listed() == in_file
    orders = (BY_GAIN, BY_GAIN[::-1], by_score, by_score[::-1], in_file)
    for name, order in zip(("best", "worst", "score", "score", "file"), orders, strict=True):
        page(f"[data-sort={name}]").click()
        assert page.listed() == order and page.selected() == order[0]
        assert len(page.texts('[data-sort][aria-pressed="true"]')) == 1

    page("#list").click()
    for keys, expected in (
        ((Keys.HOME, Keys.ARROW_DOWN, "j", "j", Keys.ARROW_UP), "row-2"),
        (("k",), "row-1"),
        ((Keys.END, "j"), "row-7"),
        (("w",), BY_GAIN[-1]),
        (("g",), BY_GAIN[0]),
        (("/", "number 5", Keys.ENTER), "row-5"),
    ):
        webdriver.ActionChains(page.browser, duration=0).send_keys(*keys).perform()
        assert page.selected() == expected
    assert page("#search").get_attribute("value") == "number 5"
    assert page.run("return document.activeElement.id") == "list"
    page("#shortcuts").click()
    page("#search").clear()
    page("#shortcuts").send_keys("g")
    assert page.selected() == "row-5", "keys can be turned off"


def test_rows_are_filtered_by_category_and_by_a_word_in_any_text(page: Page) -> None:
    page.open(replace(CONTENT, rows=[*CONTENT.rows, row(8, adapter="Then the ZEBRA drinks.")]))
    Select(page("#category")).select_by_visible_text("summarization (4)")
    assert page("#count").text == "4 of 9 rows"
    assert page.listed() == ["row-1", "row-3", "row-5", "row-7"] and page.selected() == "row-1"
    page("#search").send_keys("zebra")
    assert page("#count").text == "0 of 9 rows" and page("#detail").text == ""
    Select(page("#category")).select_by_index(0)
    assert page("#count").text == "1 of 9 rows" and page.selected() == "row-8"


def test_earlier_turns_are_shown_above_the_intent_and_found_and_the_source_is_named(page: Page) -> None:
    turns = [("user", f"Why not?\n{HOSTILE}"), ("assistant", "It rains. " * 400)]
    history = [{"role": role, "content": text} for role, text in turns]
    page.open(replace(CONTENT, rows=[*CONTENT.rows, row(8, history=history, source="tickets", context="Wet.")]))
    assert page.texts("#detail .context") == [] and "from" not in page("#detail .about").text
    page("#search").send_keys("it rains")
    assert page("#count").text == "1 of 9 rows" and page.selected() == "row-8"
    heads = page.run("return [...document.querySelectorAll('#detail h3, #detail h4')].map(e => e.textContent)")
    assert heads[:3] == ["Earlier turns", "How do I brew tea number 8?", "Context"]
    shown = page.run("return [...document.querySelectorAll('#detail .context p')].map(e => e.textContent)")
    assert shown == ["User", turns[0][1], "Assistant", turns[1][1], "Wet."]
    assert "from tickets" in page("#detail > .about").text
    long, short = page.browser.find_elements(By.CSS_SELECTOR, "#detail .long")
    assert long.size["height"] < 200 and long.get_attribute("tabindex") == "0" and not short.get_attribute("tabindex")


def test_the_address_links_to_the_selected_row(page: Page) -> None:
    page.open(replace(CONTENT, rows=[*CONTENT.rows, row(8, id="ä/b c")]), "#row=row-6")
    assert page.selected() == "row-6"
    page("[data-row=row-3]").click()
    assert page.selected() == "row-3" and page.browser.current_url.endswith("#row=row-3")
    page("#search").send_keys("number 3")
    page.run("location.hash = '#row=' + encodeURIComponent('ä/b c')")
    page.wait("document.querySelector('#detail .about a').textContent === 'ä/b c'")
    assert page("#search").get_attribute("value") == "", "a link clears the filters"


def test_the_words_that_answer_and_reference_have_in_common_in_order_are_marked(page: Page) -> None:
    answer = "Pour. BOIL the milk,\nthen pour it."
    page.open(replace(CONTENT, rows=[row(0, reference="Boil the water.\nPour it slowly.", adapter=answer, base="No.")]))
    assert page.texts("mark") == ["BOIL the", "pour it"]
    assert page("#detail .answer.adapter .text").text == answer
    page("#marking").click()
    assert page.texts("mark") == []


def test_with_unicode_words_of_every_script_are_counted_and_marked(page: Page) -> None:
    texts = {
        "reference": "关上Wi-Fi。\nL'ÉTÉ à 3,5 км",
        "adapter": "请关上 WI-FI!\nl\u2019été, a 3,5 км",
        "base": "ปิดที่นี่",
    }
    page.open(replace(CONTENT, tokenizer="unicode", rows=[row(0, **texts)]))
    assert page.texts("mark") == ["关上 WI-FI", "l\u2019été", "3,5 км"]
    counts = page.texts("#detail .answer footer")
    assert [count.split(" word")[0] for count in counts] == ["8", "4", "9"], "reference, base, fine-tuned"


def test_a_thousand_long_rows_keep_the_number_of_elements_small(page: Page) -> None:
    long = "Stir the pot and wait for it. " * 70
    rows = [row(n, context=long, reference=long, base=long, adapter_rougeL=n / 1000) for n in range(1000)]
    page.open(replace(CONTENT, rows=rows))
    before = page.run("return document.querySelectorAll('*').length")
    page("[data-sort=best]").click()
    assert page.listed()[0] == page.selected() == "row-999"
    page("#list").send_keys(Keys.END)
    assert page.selected() == "row-0"
    page.run("document.getElementById('list').scrollTop = 30000")
    page.wait("document.querySelector('#list [data-row=row-530]')")
    assert page.selected() == "row-0", "the selected option is an element even when it is out of sight"
    assert before < 700 and page.run("return document.querySelectorAll('*').length") < before + 100


def test_a_narrow_window_has_nothing_beyond_its_edge(page: Page) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        unbroken = "x" * 500
        rows = [row(0, base=unbroken, intent=unbroken, category=unbroken)]
        chat = [{"question": unbroken, "accepted": [unbroken], "base": unbroken, "adapter": unbroken}]
        page.open(replace(CONTENT, rows=rows, slices=[group("category", unbroken, 0.5, 0.4, 0.6)], chat=chat))
        page("#chat summary").click()
        assert page.run("return document.documentElement.scrollWidth") == 400
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_missing_is_not_shown(page: Page) -> None:
    metrics = {"rows": 8, "base": {"rougeL": 0.1}, "adapter": {"rougeL": 0.2, "rougeL_low": None}}
    losses = [(1, float("nan")), (2, 0.5)]
    empty = replace(CONTENT, metrics=metrics, rows=[], chat=[], cost="", validation_loss=[], validation_rouge_l=[])
    page.open(replace(empty, train_loss=losses))
    assert page.table("#score-table") == {"Base model": ["", "0.1000", ""], "Fine-tuned": ["", "0.2000", ""]}
    assert "undefined" not in page("body").text and "NaN" not in page("body").text
    assert "NaN" not in str(page("#losses .curve").get_attribute("d"))
    for hidden in ("#measure-table", "#scatter", "#histogram", "#rows", "#elsewhere", "#cost", "#answers-curve"):
        assert not page(hidden).is_displayed()
