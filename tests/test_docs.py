"""The pages for readers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")]


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_page_file_or_heading_here_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r'\]\(([^)\s]+)\)|<img src="([^"]+)"', text):
        place, _, anchor = "".join(link).partition("#")
        if re.match(r"https?:", place):
            continue
        target = page.parent / place if place else page
        assert target.exists(), place
        assert not anchor or anchor in anchors(target), anchor
