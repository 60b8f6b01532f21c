"""An opened page that records its requests and its console messages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Opened:
    """A page; `requests` are the addresses it asked for, `complaints` its console warnings, errors and dialogs."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("dialog", self._dialog)

    @property
    def links(self) -> list[str]:
        """The addresses that the page leads to, without their fragments, each once."""
        found: list[str] = self.page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
        return list(dict.fromkeys(address.partition("#")[0] for address in found))

    def strangers(self, folder: Path) -> list[str]:
        """Return the requested addresses that are neither data nor a file below `folder`."""
        return [address for address in self.requests if not _below(folder, address)]

    def ask(self, script: str, *given: Any) -> Any:
        """Return the result of a script on the page; it runs even where the page's own scripts may not."""
        return self.page.evaluate(script, *given)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def _below(folder: Path, address: str) -> bool:
    parts = urlparse(address)
    return parts.scheme == "data" or (parts.scheme == "file" and folder in Path(unquote(parts.path)).parents)


def overflowing(found: Opened) -> list[str]:
    """Return the elements that make the document wider than its window; empty where it fits."""
    return found.ask(
        """() => {
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= width) return [];
          const wide = [...document.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > width + 1);
          return wide.map(e => e.tagName + " " + e.className + " " + e.textContent.slice(0, 40));
        }"""
    ) or (["the document"] if found.ask("document.documentElement.scrollWidth > innerWidth") else [])
