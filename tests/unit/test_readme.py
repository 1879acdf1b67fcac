"""The first page: its links lead somewhere, and what people ask for is one click away."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hosting site makes them."""
    text = page.read_text(encoding="utf-8")
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.replace(" ", "-"))
    return found


@pytest.mark.parametrize("link", LINKS)
def test_a_link_of_the_first_page_leads_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    page = ROOT / path
    assert page.is_file(), link
    assert not anchor or anchor in anchors(page), link


@pytest.mark.parametrize(
    "question",
    [
        "my own CSV", "on one GPU", "on two hosts", "watch a run", "stop and go on",
        "export a model", "talk to the model", "robot policy", "by rewards", "what a message means",
    ],
)  # fmt: skip
def test_what_people_ask_for_is_one_click_away(question: str) -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and question in line]
    assert len(rows) == 1 and "](docs/" in rows[0]


def test_the_targets_of_make_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
