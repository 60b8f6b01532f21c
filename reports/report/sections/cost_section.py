"""The cost of the runs: time by phase, tokens, and peak memory."""

from __future__ import annotations

from reports.data.frames import Frames
from reports.data.tables import cost_table
from reports.document import grids
from reports.document.blocks import Picture, Section, Text
from reports.figures.draw_cost import draw_cost
from reports.report.report_data import ReportData

NOTE = (
    "Mean per run. A whole step includes generation, teacher scoring and the student (forward, backward, optimiser). "
    "Models are built once, by the first run that needs them, and loaded by the others. Tokens are those of prompts "
    "and answers in training. A stage with an adapter of its own counts in the total alone, and only for the run that trained "
    "it: the others took it over. Outside % is the share of the total that none of these columns covers."
)
MEMORY = {
    "gpu": "Peak memory is that of tensors on the GPU, the highest of all runs, without vLLM's own process.",
    "process": (
        "Peak memory is that of the whole process with its libraries, the highest of all runs, without child processes "
        "such as vLLM's."
    ),
    "": "Peak memory was not recorded by every run; runs of this version record it.",
}


def make_section(report_data: ReportData) -> Section:
    """Return the section."""
    frames, table = report_data.frames, cost_table(report_data.frames)
    alt = "Seconds of one run by phase, a bar per method; the table below holds its numbers."
    picture = Picture("cost", "Seconds of one run by phase", "Mean over runs.", lambda: draw_cost(table), alt)
    notes = [Text(" ".join([NOTE, *_memory(frames)]), "note")]
    return Section("cost", "Cost", "What it cost", [picture, grids.cost_grid(frames), *notes])


def _memory(frames: Frames) -> list[str]:
    """Say what the peak memory covers, for each kind of device that the runs used."""
    return [MEMORY[of] for of in dict.fromkeys(run.memory_of for run in frames.runs)]
