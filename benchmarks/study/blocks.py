"""A page as a list of blocks, rendered as Markdown and as one self-contained HTML file."""

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section's title; level 1 is the page's."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; of `columns` the first `left` are words, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file, named relative to the page, and what it shows."""

    path: str
    text: str


Block = Heading | Paragraph | Table | Picture

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 84rem; margin: 0 auto;
  padding: 1rem; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: 0.8rem; }
th, td { padding: 0.25rem 0.35rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { text-align: right; border-bottom: 2px solid #555; } td { text-align: right; white-space: nowrap; }
th.left, td.left { text-align: left; white-space: normal; min-width: 8rem; }
td.left:last-child { min-width: 24rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
@media (max-width: 50rem) { img { min-width: 50rem; } }
figcaption { font-size: 0.85rem; color: #444; }
"""


def markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are links."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Paragraph):
            parts.append(block.text)
        elif isinstance(block, Picture):
            parts.append(f"![{block.text}]({block.path})\n\n{block.text}")
        else:
            rule = ["---" if i < block.left else "--:" for i in range(len(block.columns))]
            rows = [block.columns, rule, *block.rows]
            parts.append("\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def page(blocks: Sequence[Block], home: Path) -> str:
    """The page as HTML with its pictures inside; `home` is the folder that their paths start from."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    parts = [_html(block, home) for block in blocks]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _html(block: Block, home: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode((home / block.path).read_bytes()).decode()
        text = html.escape(block.text)
        image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
        return f'<figure><div class="wide">{image}</div><figcaption>{text}</figcaption></figure>'

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="left"' if i < block.left else "" for i in range(len(cells))]
        texts = [html.escape(cell).replace("\n", "<br>") for cell in cells]
        return "<tr>" + "".join(f"<{tag}{k}>{t}</{tag}>" for k, t in zip(kinds, texts, strict=True)) + "</tr>"

    rows = "\n".join(line("td", row) for row in block.rows)
    head = line("th", block.columns)
    table = f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table>"
    return f'<div class="wide">{table}</div>'
