"""Tables of texts as Markdown and as LaTeX, with all markup escaped."""

from __future__ import annotations

import re

import pandas as pd

from reports.document.rendering import escape_markdown

LATEX = {"<": "$<$", "−": "$-$", "–": "--", "\u00a0": "~", "×": r"$\times$"}
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of texts as Markdown, all markup escaped, the first column aligned left and the others right."""
    align = ["left", *["right"] * (table.shape[1] - 1)]
    escaped = table.map(escape_markdown).rename(columns=escape_markdown)
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=align)


def latex_table(table: pd.DataFrame, title: str, note: str = "") -> str:
    """Return a table of texts as LaTeX with caption, label and a note, in characters that pdflatex has."""
    form = "l" + "r" * (table.shape[1] - 1)
    label = f"tab:{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}"
    text = table.to_latex(
        index=False, escape=True, column_format=form, caption=escape_latex(title), label=label, position="tbp"
    )
    if note:
        text = text.replace(
            "\\end{table}", f"\\par\\smallskip{{\\footnotesize {escape_latex(note)}\\par}}\n\\end{{table}}"
        )
    for sign, command in LATEX.items():
        text = text.replace(sign, command)
    return text


def escape_latex(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(character, character) for character in text)
