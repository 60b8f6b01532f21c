"""Builds a report from run directories: one self-contained HTML page, Markdown, figures (PNG, SVG) and CSV tables.

Runs may still be going on, and several processes may build at once: everything is written beside its place and then
moved there, the page last, so that a reader never opens a half-written file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from harness.errors import RunError
from reports import figures, pulls, style, views, words
from reports.frames import Frames, load
from reports.tables import write_tables

Data = TypeVar("Data")


@dataclass(frozen=True)
class Drawing(Generic[Data]):
    """A figure on a page: file name, heading, what to look for, how it is drawn, and what its numbers say.

    An optional one is left out where it has no data; of the others the page says why they are not drawn.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Data], Figure]
    reading: Callable[[Data], str] = lambda _: ""
    optional: bool = False


DRAWINGS: list[Drawing[Frames]] = [
    Drawing(
        "retention",
        "Retention: what each stage did to every task",
        "Read down a column: how a task fares from stage to stage. A frame marks the stage that trained the task; "
        "probes (right of the line) are never trained. With several seeds, small numbers are lowest and highest.",
        lambda frames: figures.retention_heatmap(frames.scores),
    ),
    Drawing(
        "learning",
        "Learning: each task at its own stage",
        "Filled marks are scores right after the task's own stage, hollow marks right before it. The band runs from "
        "the lowest to the highest seed.",
        lambda frames: figures.learning_curves(frames.scores),
    ),
    Drawing(
        "forgetting",
        "Forgetting: each task through the stages",
        "Shading marks the task's own stage; what falls to the right of it is forgotten, what falls to the left was "
        "lost before the task was trained. The band runs from the lowest to the highest seed.",
        lambda frames: figures.forgetting_curves(frames.scores),
    ),
    Drawing(
        "entropy",
        "Entropy through training",
        "Mean entropy of the student's next-token distribution (full vocabulary) at the answer tokens it was trained "
        "on, smoothed by a rolling mean of 5 steps within a stage. The band runs from the lowest to the highest seed.",
        lambda frames: figures.entropy_curves(frames.steps),
    ),
    Drawing(
        "pulls",
        "Pulls on the teacher's first choice",
        "Look for a method that pulls down harder than another: it pushes a confident student back, and noise around the "
        "teacher drifts to higher entropy. pull = −∂L/∂z_v, how hard a step of descent raises the logit of v, the "
        "teacher's first choice. Up: mean over the response tokens of pull where q(v) < p(v), else 0; down: mean of −pull "
        "where q(v) ≥ p(v), else 0; q student, p teacher. On two tokens AOPD pulls up by 2 (1−q)(p−q) and down by "
        "2 q (q−p), to first order: harder down where q is high. The student is mostly below its teacher, so compare "
        "methods, not up with down, whose scales differ. Single tokens are sampled, so a mean may be negative. Rolling mean "
        "of 5 steps within a stage; bands run from the lowest to the highest seed.",
        lambda frames: pulls.pull_curves(frames.steps),
        pulls.pulls_reading,
        optional=True,
    ),
    Drawing(
        "agreement",
        "Agreement with the teacher",
        "Above, the share of the teacher's K most probable tokens that are among the student's K; below, the probability "
        "that student (solid) and teacher (dashed) give these tokens; at the response tokens trained on. K is what "
        "the method asks of the teacher, 1 for OPD, so levels compare only at equal K; look at how lines move. Rolling "
        "mean of 5 steps within a stage; bands run from the lowest to the highest seed.",
        lambda frames: pulls.agreement_curves(frames.steps),
        pulls.agreement_reading,
        optional=True,
    ),
]


def build_report(paths: Sequence[Path], out: Path, grader: str = "") -> Path:
    """Write report.html, report.md, figures/ and tables/ below `out` from the runs below `paths`; return the page.

    `grader` shows the scores that it gave, where a task was regraded with it. Raises RunError when a path holds no run or
    the runs are not comparable. What is unfinished is named in the report.
    """
    frames = load(paths, grader)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".building-") as scratch:
        _write(frames, Path(scratch))
        publish(Path(scratch), out)
    return out / "report.html"


def _write(frames: Frames, folder: Path) -> None:
    (folder / "figures").mkdir()
    context = _context(frames, list(_draw(frames, folder / "figures")))
    templates = environment()
    for name in ("report.md", "report.html"):
        text = templates.get_template(f"{name}.j2").render(context)
        (folder / name).write_text(text, encoding="utf-8")
    write_tables(frames, folder / "tables")


def publish(scratch: Path, out: Path) -> None:
    """Move every file to its place below `out`, pages last."""
    files = (path for path in scratch.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: (path.suffix == ".html", path.suffix == ".md")):
        target = out / file.relative_to(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def _draw(frames: Frames, folder: Path) -> Iterator[dict[str, Any]]:
    """Save each figure and yield what the templates need of it; one without data yields the reason instead, if any."""
    for drawing in DRAWINGS:
        entry = {"name": drawing.name, "title": drawing.title, "caption": drawing.caption, "svg": None, "reading": ""}
        try:
            figure = drawing.draw(frames)
        except RunError as error:
            yield {**entry, "reason": None if drawing.optional else str(error)}
            continue
        style.save(figure, folder / drawing.name)
        svg = Markup(style.inline_svg(folder / f"{drawing.name}.svg", drawing.title))
        yield {**entry, "reason": None, "svg": svg, "reading": drawing.reading(frames)}


def _context(frames: Frames, drawings: list[dict[str, Any]]) -> dict[str, Any]:
    graded = f" (graded by {frames.grader} where a task offers it)" if frames.grader else ""
    return {
        "title": f"{', '.join(dict.fromkeys(run.suite for run in frames.runs))}: what was learned, what was lost{graded}",
        "headline": words.headline(frames),
        "missing": words.missing(frames),
        "drawings": {drawing["name"]: drawing for drawing in drawings},
        "retention": views.retention_grids(frames.scores),
        "figures": views.figures_grid(frames.scores),
        "several": views.several_answers_grid(frames),
        "profiles": [_profile(frames.under(name)) for name in frames.profiles],
        "outcomes": views.outcomes_grid(frames.scores),
        "warnings": {"sentence": words.training_warnings(frames), "grid": views.warnings_grid(frames)},
        "cost": views.cost_grid(frames),
        "provenance": [getattr(views, f"{name}_grid")(frames) for name in ("runs", "weights", "packages", "hardware")],
        "overlap": {"sentences": words.overlap(frames), "grid": views.overlap_grid(frames)},
        "configs": _configs(frames),
    }


def _profile(frames: Frames) -> dict[str, Any]:
    """Return what the templates need of a further profile: a matrix of its own, never mixed with the first one's."""
    return {
        "name": frames.profile,
        "retention": views.retention_grids(frames.scores),
        "figures": views.figures_grid(frames.scores),
        "several": views.several_answers_grid(frames),
    }


def _configs(frames: Frames) -> list[dict[str, str]]:
    """Return each distinct resolved configuration and adapter configuration once, as text with a title."""
    found: dict[str, str] = {}
    for run, label in frames.labelled:
        found.setdefault(
            f"Suite, configuration {run.manifest.get('config_hash')}", _as_json(run.manifest.get("config"))
        )
        found.setdefault(f"Adapter {label}", _as_json(run.manifest.get("adapter_config")))
    return [{"title": title, "text": text} for title, text in found.items()]


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def environment() -> Environment:
    """Return the templates with the filters `md`, `indented` and `formula`; what a template lacks is an error."""
    templates = Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"md": _markdown, "indented": _indented, "formula": _formula}
    return templates


def _markdown(text: object) -> str:
    """Escape what Markdown or the HTML inside it would take as markup, so that a cell stays one cell."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*|~]|\](?=\())", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))


def _formula(text: str) -> Markup:
    """Return a formula with its `_j` and `_{...}` set as subscripts."""
    return Markup(re.sub(r"_(?:\{([^}]*)\}|(\w))", r"<sub>\1\2</sub>", str(escape(text))))


def _indented(text: str) -> str:
    """Return a Markdown code block that no content can close."""
    return "\n".join(f"    {line}" for line in text.splitlines())
