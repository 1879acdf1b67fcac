"""Nodes that are not alike end before the first step, and the one that differs is named."""

from pathlib import Path
from typing import Any

import pytest

from workloads.engine import distributed, nodes
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def meet(monkeypatch: pytest.MonkeyPatch, *others: dict[str, str]) -> None:
    """This process is node 0; `others` are what further nodes say."""

    def gather(value: Any) -> list[Any]:
        if not isinstance(value, tuple):
            return [value, *range(1, len(others) + 1)]
        return [value, *((n, f"host{n}", facts) for n, facts in enumerate(others, start=1))]

    monkeypatch.setattr(distributed, "gather", gather)


def test_the_node_and_what_differs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """E-1."""
    meet(monkeypatch, {"code": "a", "rows": "x"}, {"code": "a", "rows": "y"})
    said = r"same rows on all nodes, found y on node 2 \(host2\) and x on node 0"
    with pytest.raises(UserError, match=said):
        nodes.check_alike(lambda: {"code": "a", "rows": "x"})


def test_nodes_that_are_alike_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    meet(monkeypatch, {"rows": "x", "code": "abc (commit 1, changed)"})
    nodes.check_alike(lambda: {"rows": "x", "code": "abc (commit 1)"})


def test_one_node_is_asked_for_nothing() -> None:
    def facts() -> dict[str, str]:
        raise AssertionError("reading all weights takes its time")

    nodes.check_alike(facts)


def test_every_part_of_a_model_has_its_digest(tmp_path: Path) -> None:
    """E-1: weights, config and tokenizer by their contents."""
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text(name)
    first = nodes.model_files(tmp_path, weights=True)
    (tmp_path / "README.md").write_text("other words")
    assert nodes.model_files(tmp_path, weights=True) == first
    for name, part in (
        ("model.safetensors", "weights"),
        ("tokenizer.json", "config and tokenizer"),
    ):
        (tmp_path / name).write_text("changed")
        changed = nodes.model_files(tmp_path, weights=True)
        assert [key for key in first if first[key] != changed[key]] == [part]
        first = changed


def test_a_file_of_the_hub_is_known_by_its_name_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / ("a" * 64)
    blob.write_text("weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(blob)
    before = nodes.model_files(tmp_path / "snapshot", weights=True)
    blob.write_text("not read")
    assert nodes.model_files(tmp_path / "snapshot", weights=True) == before


def test_software_names_code_and_versions() -> None:
    found = nodes.software()
    assert {"code", "Python", "torch", "transformers"} <= set(found)
    assert "(commit " in found["code"]
