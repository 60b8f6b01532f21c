"""A report is complete, self-contained, safe against hostile text, honest about gaps, and never half written."""

import json
import os
import re
import threading
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from adapters.loop.guards import NOT_FINITE, Guards
from harness.rundir.records.overlap_record import Overlap, OverlapRow
from reports.data.frames import load_frames
from reports.document import sentences
from reports.document.rendering import escape_markdown
from reports.report import build
from reports.terminal.retention_table import print_retention
from tests.support.reports.run_factory import HOSTILE, PROBES, STAGES, TAUGHT, write_run
from tests.support.runs import vouch

OTHER = [[0.50, 0.10, 0.60], [0.60, 0.20, 0.50], [0.50, 0.70, 0.60]]


DRAWN = (
    *("frontier", "retention", "learning", "forgetting", "flips", "decomposition", "entropy", "routed", "advantage"),
    *("pulls", "agreement", "cost"),
)
STACKED = ("frontier", "retention", "learning", "forgetting")  # drawn a second time for phones
ITEMS = {f"items/{task}.html" for task in (*STAGES, *PROBES)}


class Page(HTMLParser):
    """Collects elements and the addresses they would load or lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def html_row(cells: list[str]) -> str:
    """A table's row as the page has it: its first cell heads it."""
    return f'<tr><th scope="row">{cells[0]}</th><td>{"</td><td>".join(cells[1:])}</td></tr>'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "none")
    write_run(root, "opd", 0, logged=TAUGHT)
    write_run(root, "opd", 1, OTHER, logged=TAUGHT)
    write_run(root, "aopd", 0, OTHER, logged=TAUGHT | {"pull_down": 0.04, "top_k": 32})
    write_run(root, "aopd", 1, logged=TAUGHT | {"warnings": ["truncation", HOSTILE]})
    return build.build_report([root / "tiny"], root / "report").parent


def test_a_report_holds_page_markdown_figures_and_tables_and_nothing_else(report: Path):
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    drawings = {f"figures/{name}.{suffix}" for name in DRAWN for suffix in ("png", "svg")}
    items = {f"items/{task}.html" for task in (*STAGES, *PROBES)}
    tables = {f"tables/{name}.csv" for name in ("figures", "retention", "frontier", "matched", "flips", "advantage")}
    assert names >= {"report.html", "report.md"} | drawings | items | tables
    assert {name for name in names if name.startswith("figures/")} == drawings
    assert not [path for path in report.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_formats_mention_every_adapter_stage_and_task(report: Path, name: str):
    text = (report / name).read_text(encoding="utf-8")
    for word in ("none", "opd", "aopd", "tiny_arithmetic", "tiny_weather", "tiny_long_sums", "after tiny_weather"):
        assert word in text
    for word in ("Chaudhry", "f00dfeedf00d", "0123456789abcdef", "digest-start-1", "2.13.0", "harness run tiny"):
        assert word in text


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(report: Path):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    others = {each.partition("#")[0] for each in page.addresses if not each.startswith(("#", "data:image/png;base64,"))}
    assert others == ITEMS
    assert not {"script", "iframe", "object", "link", "form"} & set(page.tags)
    assert page.tags.count("svg") == len(DRAWN) + len(STACKED)
    assert len(page.ids) == len(set(page.ids))


def test_hostile_text_stays_text(report: Path):
    html = (report / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    text = (report / "report.md").read_text(encoding="utf-8")
    hostile = [line for line in text.splitlines() if "<script" in line]
    assert hostile
    assert all(line.startswith("    ") for line in hostile)
    assert escape_markdown(HOSTILE + "[x](http://evil.example)").count("<") == 0
    assert r"]\(" not in escape_markdown("R[i][j]")


def test_markdown_tables_keep_their_columns_and_figures_exist(report: Path):
    text = (report / "report.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == len(DRAWN)
    assert all((report / link).is_file() for link in links)


@pytest.mark.slow
def test_building_again_gives_the_same_bytes_and_a_reader_never_meets_half_a_page(report: Path):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    found, done = set(), threading.Event()

    def read() -> None:
        while not done.wait(0.001):
            with (report / "report.html").open("rb") as page:
                page.seek(max(0, page.seek(0, os.SEEK_END) - 20))
                found.add(page.read().rstrip().endswith(b"</html>"))

    reader = threading.Thread(target=read)
    reader.start()
    build.build_report([report.parent / "tiny"], report)
    done.set()
    reader.join()
    assert found == {True}
    assert {path for path, data in before.items() if path.read_bytes() != data} == set()


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_warnings_are_listed_with_their_step_and_in_words(report: Path, name: str):
    text = (report / name).read_text(encoding="utf-8")
    # one run, two stages of four steps, two warnings each
    assert "16 warnings in 1 of 4 runs" in text
    warning = f"truncation: {sentences.WARNINGS['truncation']}"
    row = ["aopd", "1", "2: tiny_weather", "3", warning]
    assert text.count(f"| {' | '.join(row)} |" if name.endswith("md") else html_row(row)) == 1


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_pulls_and_agreement_are_stated_in_numbers(report: Path, name: str):
    text = unescape((report / name).read_text(encoding="utf-8")).replace("\u00a0", " ")
    # aopd's runs pull down by 0.04 and 0.01, up by 0.02: ratios 2 and 0.5
    assert "opd 0.0200 up and 0.0100 down, ratio 0.5000 [0.5000, 0.5000]; aopd 0.0200 up and 0.0250 down" in text
    assert "ratio 1.2500 [" in text
    assert "opd (K = 1) overlap 90.0 %, mass 80.0 % of the student's and 95.0 % of the teacher's" in text


@pytest.mark.usefixtures("blank_figures")
def test_step_logs_of_earlier_versions_render_without_what_they_lack(tmp_path: Path):
    write_run(tmp_path, "opd")
    page = build.build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "Pulls on" not in page
    assert "#pulls" not in page
    assert "Not drawn" not in page
    assert "No step log says" in page
    write_run(tmp_path, "aopd", logged=TAUGHT)
    page = build.build_report([tmp_path / "tiny"], tmp_path / "report").read_text(encoding="utf-8")
    assert re.search(r"No training step raised a warning\. .*step logs of 1 run do not", page)
    assert "aopd 0.0200 up and 0.0100 down, ratio 0.5000." in page


def test_every_warning_of_the_guards_is_put_in_words():
    assert {NOT_FINITE, *(name for _, name, _ in Guards(print).signs)} == set(sentences.WARNINGS)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("evaluated", [4, 8])
def test_an_unfinished_run_renders_and_says_what_is_missing(tmp_path: Path, evaluated: int):
    write_run(tmp_path, "opd")
    write_run(tmp_path, "aopd", evaluated=evaluated)
    page = build.build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "Unfinished." in page
    missing = sentences.list_missing(load_frames([tmp_path / "tiny"]))
    assert all(sentence in page for sentence in missing)
    last = "of tiny_long_sums yet" if evaluated == 8 else "has no evaluation yet"
    assert missing[-1].startswith("aopd, seed 0: stage 2 (tiny_weather)")
    assert last in missing[-1]


@pytest.mark.parametrize("evaluated", [1, 3, 4])
def test_a_report_can_be_built_while_the_first_stage_trains(tmp_path: Path, evaluated: int):
    """One cell of the start, the whole start, and the first cell after the first stage."""
    write_run(tmp_path, "opd", evaluated=evaluated)
    page = build.build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "Unfinished." in page
    assert "<svg" in page


@pytest.mark.usefixtures("blank_figures")
def test_the_metric_of_each_task_is_named_and_a_perplexity_is_not_called_a_share(tmp_path: Path):
    run = write_run(tmp_path, "opd")
    for file in run.glob("stage_*/eval/tiny_long_sums/results.json"):
        cell = json.loads(file.read_text())
        cell |= {"metric": "word_perplexity", "metrics": {"word_perplexity": 25.0}, "score": 0.04, "outcomes": {}}
        file.write_text(json.dumps(cell))
        vouch(file)
        (file.parent / "samples.parquet").unlink()
    build.build_report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Score: the metric" in text
    assert re.search("Score: 1 / word_perplexity, .*higher is better", text)
    assert "25 at the start, 25 after the last stage" in text
    assert "no right or wrong answers" in text
    assert "| opd | tiny_long_sums | 10 |" not in text


@pytest.mark.usefixtures("blank_figures")
def test_the_heading_of_a_task_that_was_trained_before_the_start_does_not_call_it_a_probe(tmp_path: Path):
    tasks = {"stages": ("tiny_weather",), "probes": ("tiny_arithmetic", "tiny_long_sums")}
    origin = {"trained": [{"task": "tiny_arithmetic"}]}
    write_run(tmp_path, "opd", 0, [[0.1, 0.8, 0.6], [0.9, 0.4, 0.5]], **tasks, config={"origin": origin})
    page = build.build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    headings = dict(re.findall(r"<h3[^>]*>(tiny_\w+)(.*?)<", page))
    assert headings.keys() == {"tiny_weather", "tiny_arithmetic", "tiny_long_sums"}
    assert [word in headings["tiny_arithmetic"] for word in ("probe", "trained before")] == [False, True]
    assert [word in headings["tiny_long_sums"] for word in ("probe", "never trained")] == [True, True]
    assert headings["tiny_weather"] == ""


def record_overlap(run: Path, *rows: OverlapRow) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "overlap": Overlap(rows=rows, digests={"test a": "0f"}).as_json()}))


def compared(*values: object) -> OverlapRow:
    return OverlapRow.model_validate(dict(zip(OverlapRow.model_fields, values, strict=True)))


CLEAN = compared("warm-up", "tiny_weather", "tiny_arithmetic", 36, 200, 0, 0, 0.0, 200)
LEAKED = compared("stage 1", "tiny_arithmetic", "tiny_weather", 4000, 200, 7, 9, 0.8123, 100)


@pytest.mark.usefixtures("blank_figures")
def test_training_prompts_in_test_sets_are_shown_once_and_lead_the_report(tmp_path: Path):
    for adapter in ("opd", "aopd"):
        record_overlap(write_run(tmp_path, adapter), CLEAN, LEAKED)
    build.build_report([tmp_path], tmp_path / "report")
    row = ["stage 1 tiny_arithmetic", "4000", "tiny_weather", "200", "7", "9", "81.2", "100"]
    for name, written in (("report.html", html_row(row)), ("report.md", f"| {' | '.join(row)} |")):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert text.count(written) == 1
        assert "warm-up tiny_weather" not in text
        # in the headline, and where the report says how it was made
        assert text.count("(7 of 200 of tiny_weather in stage 1 tiny_arithmetic)") == 2


@pytest.mark.usefixtures("blank_figures")
def test_one_sentence_says_that_nothing_overlaps_and_another_that_a_run_recorded_nothing(tmp_path: Path):
    record_overlap(write_run(tmp_path, "opd"), CLEAN)
    write_run(tmp_path, "aopd")
    build.build_report([tmp_path], tmp_path / "report")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert re.search(r"No training prompt .*\(comparisons: 1; 0 share 13-grams, .*100 %", text)
        assert re.search("1 run did not record .*training prompts", text)
        assert "Training prompts in test sets" not in text


@pytest.mark.parametrize("shape", ["one stage", "no update", "nothing evaluated"])
def test_small_runs_render(tmp_path: Path, shape: str):
    if shape == "one stage":
        write_run(tmp_path, scores=[[0.2], [0.1]], stages=("gsm8k",), probes=())
    else:
        write_run(tmp_path, "none", evaluated=0 if shape == "nothing evaluated" else None)
    page = build.build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert ("No training step has recorded" in page) == (shape != "one stage")


@pytest.mark.usefixtures("blank_figures")
def test_joint_runs_and_stages_over_several_tasks_render_with_the_others(tmp_path: Path):
    write_run(tmp_path)
    write_run(tmp_path, scores=[[0.5, 0.1, 0.6], [0.9, 1.0, 0.5]], order="joint", joint=True)
    text = (build.build_report([tmp_path], tmp_path / "out").parent / "report.md").read_text()
    assert "| after joint |" in text
    # R* = (0.9, 1.0) against R[j][j] = (0.8, 0.9)
    assert "| Intransigence | +10.0 |" in text
    console = Console(file=StringIO(), width=200)
    print_retention(console, load_frames([tmp_path]))
    assert "after joint" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_without_a_headline_the_opening_gives_each_method_s_scores(report: Path):
    opening = sentences.opening_sentences(load_frames([report.parent / "tiny"]))
    assert any(sentence.startswith("opd (2 seeds) scored 75.0 [") for sentence in opening)


def test_with_one_seed_no_method_is_called_better(tmp_path: Path):
    write_run(tmp_path, "opd")
    write_run(tmp_path, "aopd", scores=OTHER)
    opening = sentences.opening_sentences(load_frames([tmp_path]))
    assert not [sentence for sentence in opening if "minus" in sentence]
    assert "no difference between methods" in opening[-1]
    assert "±31.0 points" in opening[-1]  # 196 * sqrt(0.25 / 10)


def test_only_methods_with_one_seed_are_said_to_have_no_interval(tmp_path: Path):
    for seed in range(2):
        write_run(tmp_path, "opd", seed)
    write_run(tmp_path, "none", scores=[[0.5, 0.1, 0.6]] * 3)
    assert "no interval" not in sentences.opening_sentences(load_frames([tmp_path]))[-1]
    write_run(tmp_path, "aopd", scores=OTHER)
    limits = sentences.opening_sentences(load_frames([tmp_path]))[-1]
    assert "no interval, and no difference is established: aopd." in limits
    assert "Brackets are 95 % intervals" in limits


def test_seeds_that_end_in_two_groups_are_warned_of(tmp_path: Path):
    for seed, end in enumerate([0.1, 0.8, 0.8, 0.1, 0.9]):
        write_run(tmp_path, "aopd", seed, [[0.5, 0.1, 0.6], [0.9, 0.2, 0.6], [end, end, 0.6]])
        write_run(tmp_path, "opd", seed, OTHER)
    warnings = [each for each in sentences.opening_sentences(load_frames([tmp_path])) if "two groups" in each]
    assert len(warnings) == 1
    assert "aopd" in warnings[0]
    assert "10.0 and 80.0 to 90.0 %" in warnings[0]


def test_the_terminal_shows_stages_tasks_and_gaps(tmp_path: Path):
    write_run(tmp_path, "opd", seed=0)
    write_run(tmp_path, "opd", seed=1, scores=OTHER)
    write_run(tmp_path, "aopd", evaluated=8)
    console = Console(file=StringIO(), width=100)
    print_retention(console, load_frames([tmp_path]))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for word in ("opd, 2 seeds", "aopd, 1 seed", "after weather", "long sums (probe)", "has no evaluation of"):
        assert word in text
    assert " 70 " in text  # seeds 0.8 and 0.6; an interval from two seeds would be 12.7 * 0.1 wide
    assert "±" not in text


@pytest.mark.usefixtures("blank_figures")
def test_the_page_says_on_which_processors_the_runs_were_made(tmp_path: Path):
    for seed, name in enumerate(("EPYC", "Xeon")):
        run = write_run(tmp_path, "opd", seed)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["sessions"][0]["hardware"] = {"processor": name, "instructions": "AVX512"}
        (run / "manifest.json").write_text(json.dumps(manifest))
    text = build.build_report([tmp_path / "tiny"], tmp_path / "report").with_suffix(".md").read_text(encoding="utf-8")
    assert "Made on EPYC (AVX512) and Xeon (AVX512)." in text
