"""Writes the documentation's pictures of a report: python -m tests.browser.screenshots runs/tiny-short/report docs/report.

The first argument is a report's folder, or a folder of runs with one in it. Pictures are cut at a height that stays small:
desktop.png and phone.png of the page's top, items.png of the fullest page of answers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image

from tests.browser.chromium import DESKTOP, PHONE, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@dataclass(frozen=True)
class Picture:
    """What is shown of a page: a window's width and height in pixels."""

    name: str
    width: int
    height: int


PAGE = (Picture("desktop.png", DESKTOP[0], 1600), Picture("phone.png", PHONE[0], 1700))
ITEMS = Picture("items.png", DESKTOP[0], 900)


def main(
    report: Annotated[Path, typer.Argument(help="A report's folder, or the runs' folder that holds it.")],
    out: Annotated[Path, typer.Argument(help="Where the pictures go.")],
) -> None:
    """Take the three pictures."""
    folder = report if (report / "report.html").exists() else report / "report"
    if not (folder / "report.html").exists():
        raise typer.BadParameter(f"there is no report.html at {report}; make one with `harness report`")
    out.mkdir(parents=True, exist_ok=True)
    fullest = max(folder.glob("items/*.html"), key=lambda file: file.stat().st_size)
    with chromium() as browser:
        for file, picture in [*((folder / "report.html", each) for each in PAGE), (fullest, ITEMS)]:
            save(shot(browser, file, picture), out / picture.name)
            typer.echo(f"{out / picture.name}: {(out / picture.name).stat().st_size // 1024} KB")


def shot(browser: Browser, file: Path, picture: Picture) -> Image.Image:
    """Return the top of a page as a picture."""
    size = {"width": picture.width, "height": picture.height}
    context = browser.new_context(viewport=size, color_scheme="light")  # pyright: ignore[reportArgumentType]
    page = context.new_page()
    page.goto(file.resolve().as_uri())
    taken = page.screenshot()
    context.close()
    return Image.open(io.BytesIO(taken))


def save(picture: Image.Image, file: Path) -> None:
    """Write a PNG as small as it gets with all its colours: a palette would lose the cards' pale grey or the lines' hues."""
    picture.convert("RGB").save(file, optimize=True)


if __name__ == "__main__":
    typer.run(main)
