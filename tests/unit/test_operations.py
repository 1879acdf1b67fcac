"""docs/operations.md quotes real messages, names real settings, and its links lead somewhere."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from workloads.grpo.config import GrpoConfig
from workloads.llm.config import LlmConfig
from workloads.vla.config import VlaConfig

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text(encoding="utf-8")
QUOTES = [line[2:] for line in TEXT.splitlines() if line.startswith("> ")]
GAP = "…"


@cache
def messages() -> tuple[str, ...]:
    """Every string in the code, what is filled in shown as a gap."""
    found = []
    for path in (ROOT / "workloads").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else GAP for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_said(quote: str) -> bool:
    """Whether the pieces between gaps stand in one message, in their order."""
    pieces = [re.escape(piece.strip()) for piece in quote.split(GAP) if piece.strip(" :;,.()")]
    pattern = re.compile(".*?".join(pieces), re.DOTALL)
    return any(pattern.search(message) for message in messages())


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_said_by_the_code(quote: str) -> None:
    assert is_said(quote), quote


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert not is_said("rank … went for a walk")
    assert not is_said("… is taken (…); port …")


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        name, _, place = target.partition("#")
        page = PAGE.parent / name if name else PAGE
        assert page.is_file(), target
        headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert not place or place in map(anchor, headings), target


def test_settings_are_real() -> None:
    """`group.setting` and `group.setting=value` name settings of a workload."""
    known: set[str] = set()
    for schema in (LlmConfig, GrpoConfig, VlaConfig):
        known |= _names(schema)
    groups = {name.partition(".")[0] for name in known}
    named = re.findall(r"`([a-z]+\.[a-z_]+)(?:=[^`\s]*)?[`\s]", TEXT)
    settings = [name for name in named if name.partition(".")[0] in groups]
    assert len(settings) > 20
    assert [name for name in settings if name not in known] == []


def _names(schema: type) -> set[str]:
    return {
        f"{group}.{name}"
        for group, field in schema.model_fields.items()
        if hasattr(field.annotation, "model_fields")
        for name in field.annotation.model_fields
    }
