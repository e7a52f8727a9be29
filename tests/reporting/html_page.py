"""A page of ours, parsed: tags in balance, attributes, texts, numbers."""

from __future__ import annotations

from html.parser import HTMLParser

from medloom.files import RunDirectory
from medloom.reporting.report import write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
OUTWARD = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "formaction"}


class Page(HTMLParser):
    """Tags in balance, attributes and texts collected."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.numbers: list[tuple[str, float]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            values = dict(attrs)
            self.numbers.append((str(values["title"]), float(str(values["value"]))))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, self.getpos()
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report(run: RunDirectory) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))
