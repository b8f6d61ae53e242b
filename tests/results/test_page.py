"""The report's page: whole in one file, honest, and read in a real browser."""

import re
import shutil
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from recorded import record_job

from fedhess.jobs.job import Job, make_job
from fedhess.results import figures
from fedhess.results.files import job_panels, megabytes, target_confusions, write_all
from fedhess.results.formats import format_table
from fedhess.results.page import render_page
from fedhess.results.published import published_values
from fedhess.results.selection import read_rows
from fedhess.results.summary import summarise

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; make programs installs it")
PACS = ("photo", "art_painting", "cartoon", "sketch")


def make(path: Path, strategies: tuple[str, ...] = ("erm", "hgp"), seeds: int = 3, **more: Any) -> Job:
    """Record a job of two targets whose strategies get better one after the other."""
    accuracies = {
        (name, target, seed): (0.1, 0.5 + number / 50, 0.6 + number / 50 + seed / 100)
        for number, name in enumerate(strategies)
        for target in ("west", "east")
        for seed in range(seeds)
    }
    return record_job(path, accuracies, **more)


def render(job: Job, *, charts: bool = False) -> str:
    recorded = read_rows(job)
    summary = summarise(job, recorded)
    panels = job_panels(job, recorded, summary) if charts else []
    return render_page(job, summary, panels, target_confusions(job, recorded))


class Tags(HTMLParser):
    """Every tag with its attributes, and that each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in ("meta", "br") else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("rendered_figures")
def test_page_is_whole_and_names_nothing_outside_of_it(tmp_path: Path) -> None:
    page = render(make(tmp_path), charts=True)
    tags = Tags(page)
    assert tags.open == []
    assert not [tag for tag, _ in tags.found if tag in ("link", "img", "iframe", "script src")]
    named = [value for _, of in tags.found for key, value in of.items() if key in ("src", "href", "xlink:href")]
    assert all(str(value).startswith("#") for value in named)
    assert not re.search(r"@import|url\((?!#|\"?#)", page)
    policy = next(of["content"] for tag, of in tags.found if of.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    assert page.count("<svg") == 4, "accuracy, two distances, bytes"


def test_page_shows_names_of_users_as_text(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&amp;$x'
    page = render(make(tmp_path, ("erm", evil), classes=(evil, "dog"), title=evil))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;$x" in page
    assert sum(tag == "script" for tag, _ in Tags(page).found) == 1


def test_stand_in_is_flagged_and_has_no_published_values(tmp_path: Path) -> None:
    job = make(tmp_path, title="IconPACS (stand-in for PACS)", name="IconPACS", stand_in_for="PACS")
    page = render(job)
    assert "<h1>IconPACS (stand-in for PACS)</h1>" in page
    assert "IconPACS stands in for PACS, which could not be had" in page
    assert "None: this is a stand-in" in page
    assert "82.2" not in page, "the published average of erm on PACS"


def test_published_values_stand_beside_ours_with_source_and_protocol(tmp_path: Path) -> None:
    page = render(make(tmp_path, ("erm", "hgp", "coral"), title="PACS", name="PACS"))
    section = page[page.index("Published values") : page.index("Each domain")]
    row = next(line for line in section.split("<tr>") if "coral" in line)
    assert re.findall(r'value="([\d.]+)"|<td>(\d+)<', row) == [("65", ""), ("86.2", ""), ("", "2")], "ours, published"
    assert "<li>DomainBed&#x27;s published sweep" in section
    assert "not verified" in next(line for line in section.split("<tr>") if ">hgp<" in line)
    assert "average (ours over west, east alone)" in row, "the published one is over four domains"
    assert "looks at the target" not in section, "no column of ours is the oracle&#x27;s"


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"form": "irm", "label_shift": False}, [86.4, 14.0, 71.0]),
        ({"form": "irm", "label_shift": True}, [None, None, None]),
        ({"form": "domainbed", "label_shift": False}, []),
    ],
)
def test_other_data_of_the_same_title_has_published_values_of_its_own(
    options: dict[str, object], published: list[float | None]
) -> None:
    assert [each.value for _, each in published_values("ColoredMNIST", "erm", options)] == published


@pytest.mark.usefixtures("rendered_figures")
def test_unfinished_job_says_what_is_missing(tmp_path: Path) -> None:
    job = make(tmp_path)
    shutil.rmtree(tmp_path / "hgp" / "east" / "2")
    summary = summarise(job)
    assert summary["unfinished"] == ["hgp, target east, seed 2: round 0 of 2"]
    page = render(job)
    assert "Unfinished: 1 of 12 runs" in page
    assert "hgp, target east, seed 2: round 0 of 2" in page
    assert summary["comparison"]["strategies"]["hgp"]["average"]["pairs"] == 2
    summary["strategies"]["hgp"]["edges"] = {"lr": "2 of 3 choices lie at the low end"}
    assert "hgp, lr: 2 of 3 choices lie at the low end" in render_page(job, summary, [], {})
    begun = render(record_job(tmp_path / "begun", {("erm", "east", 0): ()}, rounds=3), charts=True)
    assert "Unfinished: 1 of 1 runs" in begun
    assert "not recorded by every run" in begun


def test_failed_cross_validation_leaves_a_table_unfinished(tmp_path: Path) -> None:
    inner = ("north+east", "south+east", "west+east")
    recorded = record_job(
        tmp_path, {("erm", each, 0): (0.1, 0.5, 0.6)[: 2 if each == inner[0] else 3] for each in ("east", *inner)}
    )
    job = make_job(tmp_path, {**recorded.record, "targets": ["east"]}, inner=True, selection="lodo")
    next(run for run in job.runs if run.scenario.name == inner[0]).directory.record_failure("it diverged")
    summary = summarise(job)
    assert summary["strategies"]["erm"]["selected_rounds"] == {"east": [1]}, "what all of them have"
    assert summary["unfinished"] == ["erm, cross-validation without north+east, seed 0: round 1 of 2: it diverged"]
    assert summary["strategies"]["erm"]["incomplete"] == {"east": "of 3 cross-validation runs 1 failed, 0 left to run"}
    assert all("UNFINISHED: 1 of 4 runs" in format_table(summary, form) for form in ("markdown", "latex"))
    assert "Unfinished: 1 of 4 runs" in render(job)
    assert summarise(job, selection="source")["unfinished"] == [], "it does not look at them"


def test_what_was_sent_is_listed_with_what_it_discloses(tmp_path: Path) -> None:
    page = render(make(tmp_path / "few"))
    section = page[page.index("What was sent") : page.index("<h2>Settings")]
    assert section.count('<td class="left">evaluate metrics</td><td class="left">3 values</td>') == 4, "by both roles"
    assert "of a constant model" in section


def test_confusions_are_shown_whole_or_by_what_is_confused_most(tmp_path: Path) -> None:
    page = render(make(tmp_path / "few"))
    section = page[page.index("What is taken for what") : page.index("What was selected")]
    first = section.split('class="confusion"')[1]
    assert re.findall(r"<td class=[^>]*>(\d*)</td>", first) == ["61", "39", "", "100"], "erm, 0.60 to 0.62"
    many = render(make(tmp_path / "many", classes=[f"class {number}" for number in range(30)]))
    section = many[many.index("What is taken for what") : many.index("What was selected")]
    assert 'class="confusion"' not in section
    assert '<th scope="row">class 0</th><td class="left">class 1</td><td>117</td><td>39</td>' in section
    assert "What is taken for what" not in render(make(tmp_path / "none", counts=False))


def test_megabytes_are_what_the_sources_sent_and_received(tmp_path: Path) -> None:
    assert megabytes(read_rows(make(tmp_path)), "hgp") == {0: 9.0, 1: 18.0, 2: 27.0}, "three sources, 3 MB each"


@pytest.mark.usefixtures("rendered_figures")
@pytest.mark.slow
def test_everything_is_written_and_made_again_to_the_byte(tmp_path: Path) -> None:
    job = make(tmp_path)
    recorded = read_rows(job)
    files = write_all(job, recorded, summarise(job))
    names = {file.relative_to(tmp_path).as_posix() for file in files}
    drawn = ["rounds", "bytes", "domains", "rounds-column", "bytes-column", "domains-column"]
    drawn += ["confusion_east", "confusion_west"]
    assert names == {
        *("summary.json", "summary.md", "table.tex", "table.csv", "report.html"),
        *(f"figures/{name}.{ending}" for name in drawn for ending in ("png", "svg", "pdf")),
    }
    before = {file: file.read_bytes() for file in files if file.suffix not in (".png", ".pdf")}
    write_all(job, recorded, summarise(job))
    assert {file: file.read_bytes() for file in before} == before
    for name, inches in {"rounds": 7.0, "domains-column": 3.4}.items():
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+)", (tmp_path / f"figures/{name}.pdf").read_bytes())
        assert float(width) == pytest.approx(72 * inches, abs=1)


def test_every_figure_names_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank, titles = figures._figure, list[str]()

    def titled(grid: tuple[int, int], *, names: Iterable[str], **more: Any) -> Any:
        titles.append(next(iter(names)))
        return blank(grid, names=names, **more)

    monkeypatch.setattr(figures, "_figure", titled)
    title = "Toy (stand-in for PACS)"
    job = make(tmp_path, title=title, stand_in_for="PACS")
    write_all(job, read_rows(job), summarise(job))
    assert sum(found.startswith(f"{title}: ") for found in titles) == 8, "those of the page are titled by it"


# -- In a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(rendered_figures: None) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@needs_chromium
def test_page_asks_nothing_of_a_network_fits_a_phone_and_sorts(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(
        render(make(tmp_path, ("erm", "hgp", "coral")), charts=True), encoding="utf-8"
    )
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    assert asked == [(tmp_path / "report.html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than a phone"
    assert page.evaluate("Math.min(...[...document.querySelectorAll('figure svg')].map(s => s.clientWidth))") > 300
    assert page.locator("table.sortable").first.locator("tbody th").all_inner_texts() == ["erm", "hgp", "coral"]

    def order() -> list[str]:
        return list(page.locator("table.sortable").first.locator("tbody th").all_inner_texts())

    average = page.locator("table.sortable").first.locator("thead button", has_text="average")
    average.click()
    assert order() == ["coral", "hgp", "erm"]
    average.click()
    assert order() == ["erm", "hgp", "coral"]
    page.locator("table.sortable").first.locator("thead button", has_text="strategy").press("Enter")
    assert order() == ["coral", "erm", "hgp"]
    assert said == []


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_of_fourteen_strategies_is_light_and_legible_everywhere(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    names = tuple(f"strategy_{number}" for number in range(14))
    classes = [f"class {number}" for number in range(12)]
    text = render(make(tmp_path, names, classes=classes, stand_in_for="PACS"), charts=True)
    assert len(text.encode()) < 2_000_000
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    contrast = page.evaluate(
        """() => {
          const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => {
            v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });
            return .2126 * r + .7152 * g + .0722 * b };
          const back = light(getComputedStyle(document.body).backgroundColor);
          return Math.min(...[...document.querySelectorAll("h1, p, td, .bar b, figcaption")].map(element => {
            const front = light(getComputedStyle(element).color);
            const shown = element.matches("td.dark") ? light("rgb(0,114,178)") : back;
            return (Math.max(front, shown) + .05) / (Math.min(front, shown) + .05) }))
        }"""
    )
    assert contrast > 4.5, "of WCAG, for text of this size"
