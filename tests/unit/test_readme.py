"""The Chinese README is kept in step with the English one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ENGLISH, CHINESE = ((REPOSITORY / name).read_text() for name in ("README.md", "README.zh-CN.md"))


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+", text, re.MULTILINE)


def inline_code(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return sorted(set(re.findall(r"`[^`\n]+`", prose)))


def links(text: str) -> list[str]:
    return sorted(re.findall(r"\]\(([^)]*)\)", text))


def table_rows(text: str) -> int:
    return len(re.findall(r"^\|", text, re.MULTILINE))


@pytest.mark.parametrize("part", [code_blocks, headings, inline_code, links, table_rows])
def test_both_have_the_same(part: object) -> None:
    assert callable(part)
    assert part(ENGLISH) == part(CHINESE)
    assert part(ENGLISH)


@pytest.mark.parametrize("document", sorted(path.name for path in REPOSITORY.glob("*.md")))
def test_links_lead_somewhere(document: str) -> None:
    for link in links((REPOSITORY / document).read_text()):
        if "://" not in link:
            assert (REPOSITORY / link).exists(), link
