"""Recipes for policy heads: planned as their comments say, for backbones of known size."""

from pathlib import Path

import pytest

from workloads.config.merge import resolve
from workloads.plan.recipes import plan_comment

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(
    path for path in ROOT.glob("profiles/recipes/policy-*.yaml") if "# Plan: " in path.read_text()
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_comment_is_the_plan(path: Path) -> None:
    """A comment is renewed by `python scripts/reference_docs.py`."""
    comment = plan_comment(path)
    assert comment in path.read_text().splitlines()
    config, _ = resolve(path, {})
    assert len(RECIPES) >= 6
    promised = [part for part in (24, 80, 16) if f"one GPU of {part} GB" in config.summary]
    assert all(int(comment.split("cards of ")[1].split()[0]) <= size for size in promised)
