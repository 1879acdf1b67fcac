"""The page of all settings, written from the schema."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import reference_docs
from workloads.config.sections import Profile, Section

pytestmark = pytest.mark.unit


def settings_of(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in schema.model_fields.items():
        inner = reference_docs.inner_section(field)
        if inner is None:
            yield f"{prefix}{name}", field
        else:
            yield from settings_of(inner, f"{prefix}{name}.")


def test_the_page_has_every_setting_once_and_what_it_does() -> None:
    lines = reference_docs.configuration().splitlines()
    for _, schema in reference_docs._workloads():
        for name, field in settings_of(schema):
            assert field.description, f"{name} has no description"
            rows = [line for line in lines if line.startswith(f"| `{name}` |")]
            assert rows, f"{name} is missing"
            shared = name.split(".")[0] in Profile.model_fields
            assert len(rows) == 1 or not shared


def test_rows_of_the_page() -> None:
    page = reference_docs.configuration()
    assert (
        "| `optim.learning_rate` | number, > 0 and < 1 | `2e-5` | `LEARNING_RATE` |"
        " Peak learning rate. |" in page
    )
    assert "| `train.max_steps` | whole number or none, ≥ 1 | `null` | `MAX_STEPS` |" in page
    assert "| `model.name` | text | **required** | `MODEL_NAME` |" in page
    assert "| `parallel.ranks_per_node` | whole number or `auto` | `auto` |" in page
    assert "| `BATCH_SIZE` | `train.per_device_batch_size` |" in page
    assert "| `adapter.targets` | list: text | `[q_proj, k_proj, v_proj, o_proj]` |" in page


def test_the_page_in_the_tree_is_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["reference_docs.py", *arguments])
        return reference_docs.main()

    assert run("--check") == 0
    page = tmp_path / "cli.md"
    assert run("--check", "--folder", str(tmp_path)) == 1
    assert run("--folder", str(tmp_path)) == 0
    assert run("--check", "--folder", str(tmp_path)) == 0
    page.write_text(page.read_text() + "more\n")
    capsys.readouterr()
    assert run("--check", "--folder", str(tmp_path)) == 1
    assert "python scripts/reference_docs.py" in capsys.readouterr().out


def test_the_command_line_has_every_command_and_option() -> None:
    page = reference_docs.command_line()
    for name in ("## `tatara train`", "### `tatara eval gsm8k`", "| `--resume` `RUN` |"):
        assert name in page
