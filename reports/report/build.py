"""Build a report from run directories: a self-contained HTML page, Markdown, figures (PNG, SVG), CSV tables, items.

Runs may still be going on, and several processes may build at once. Everything is written to a scratch folder and then moved
to its place, the page last, so that a reader never opens a half-written file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from markupsafe import Markup

from reports.compare.headline import headline
from reports.data.frames import Frames, load_frames
from reports.data.tables import write_tables
from reports.document import sentences
from reports.document.rendering import load_templates, publish
from reports.figures import style
from reports.report.ends import describe_ends
from reports.report.items import FOLDER, LONGEST
from reports.report.page_writer import Page, write_page
from reports.report.report_data import ReportData
from reports.report.sections import make_sections


def build_report(paths: Sequence[Path], out: Path) -> Path:
    """Write a report of the runs below `paths` below `out` and return the page, see `write_report`.

    Raises RunError when a path holds no run or the runs are not comparable.
    """
    return write_report(ReportData(load_frames(paths)), out)


def write_report(report_data: ReportData, out: Path) -> Path:
    """Write report.html, report.md, figures/, tables/ and items/ below `out`; return the page.

    The report names what is unfinished.
    """
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".building-") as scratch:
        _write(report_data, Path(scratch))
        publish(Path(scratch), out)
    return out / "report.html"


def title(frames: Frames) -> str:
    """Return the report's title: the suites, and the grader where one was asked for."""
    graded = f" (graded by {frames.grader} where a task offers it)" if frames.grader else ""
    return f"{', '.join(dict.fromkeys(run.suite for run in frames.runs))}: what was learned, what was lost{graded}"


def _write(report_data: ReportData, folder: Path) -> None:
    (folder / FOLDER).mkdir()
    frames, compared, ends = report_data.frames, headline(report_data.frames), describe_ends(report_data.frames)
    lead = [*compared, *ends] if compared else []
    opening = [*([] if lead else ends), *sentences.opening_sentences(frames, brief=bool(lead))]
    with style.shared(frames.labelled):
        page = Page(title(frames), lead, opening, sentences.list_missing(frames), make_sections(report_data))
        write_page(page, folder, "report", "figures")
    _write_items(report_data, folder)
    write_tables(frames, folder / "tables", report_data.tables)


def _write_items(report_data: ReportData, folder: Path) -> None:
    """Write the pages with each task's answers; their only script is `items.js`, which the page allows by its digest."""
    script = files("reports.document").joinpath("templates", "items.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = load_templates().get_template("items.html.j2")
    context = {"script": Markup(script), "digest": Markup(digest), "colours": style.page_colours(), "longest": LONGEST}
    for task in report_data.items:
        for pages in (task.pages, *task.further.values()):
            for page in pages:
                text = template.render(pages=pages, page=page, **context)
                (folder / page.path).write_text(text, encoding="utf-8")
