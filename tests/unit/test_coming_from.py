"""Commands and settings of the guides that need no model: they are taken as written."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from workloads.cli import main
from workloads.config.merge import resolve, setting_names
from workloads.vla.config import VlaConfig

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
PAGES = ("coming-from.md", "japanese.md")
START = "## The fine-tuning toolkit for Japanese models"


def commands(verbs: str) -> list[str]:
    """`tatara VERB …` of the pages, without those that stand for the reader's own."""
    found = list[str]()
    for name in PAGES:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        if START in text:
            text = text.partition(START)[2].partition("\n## ")[0]
        found += re.findall(rf"tatara (?:{verbs}) [^`\n#|]*", text)
    return [
        command.strip()
        for command in dict.fromkeys(found)
        if not re.search(r"\b[A-Z]{4,}\b", command)
    ]


@pytest.mark.parametrize("command", commands("plan|models|check"))
def test_what_is_looked_up_answers(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("workloads.device.gpus", lambda env: ())
    assert main(shlex.split(command)[1:]) in (0, 1), capsys.readouterr().err
    told = capsys.readouterr().out
    assert told and "cannot be predicted" not in told


@pytest.mark.parametrize("command", commands("train"))
def test_what_is_trained_is_a_valid_profile(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, _, name, *settings = shlex.split(command)
    resolve(f"profiles/recipes/{name}.yaml", {}, settings)


def test_there_is_something_to_run() -> None:
    assert len(commands("plan|models|check")) >= 10 and len(commands("train")) >= 3


def answers() -> list[str]:
    """What stands for each row of the table for RoboVLMs, piece by piece."""
    text = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
    table = text.partition("\n## RoboVLMs on CALVIN")[2].partition("\n## ")[0]
    rows = [line.split(" | ", 1)[1] for line in table.splitlines() if line.startswith("| ")][1:]
    return [piece for row in rows for piece in re.findall(r"`([^`]+)`", row)]


SECTIONS = "|".join(VlaConfig.model_fields)
SETTING = re.compile(rf"(?:\A|\s)((?:{SECTIONS})(?:\.[a-z_]+)+)(?:=|\Z)")


def test_each_setting_for_robovlms_is_one() -> None:
    """With the value that is written, where it is no placeholder."""
    known, found = set(setting_names(VlaConfig)), []
    for piece in answers():
        names = SETTING.findall(piece)
        if not names or piece.startswith(("workloads.", "make", "tatara")):
            continue
        places = [match.start(1) for match in SETTING.finditer(piece)]
        for start, end in zip(places, [*places[1:], len(piece)], strict=True):
            name, equals, value = piece[start:end].strip().partition("=")
            assert name in known, name
            found.append(name)
            if equals and not re.fullmatch(r"N|…", value):
                # As the row's own kind has it: Kosmos-2 on CALVIN, or a mixture.
                profile = "policy-oxe-bridge" if "mixture" in name else "policy-80gb"
                more = {"action_head.history": "none"} if value == "discrete" else {}
                more |= {"adapter.targets": ["all-linear"]} if value == "lora" else {}
                changes: dict[str, Any] = {name: value, **more}
                resolve(ROOT / f"profiles/recipes/{profile}.yaml", {}, changes)
    assert len(found) > 25


def test_each_name_in_python_for_robovlms_is_there() -> None:
    names = [piece for piece in answers() if piece.startswith("workloads.")]
    for piece in names:
        module, _, name = re.match(r"[\w.]+", piece)[0].rpartition(".")  # type: ignore[index]
        assert hasattr(importlib.import_module(module), name), piece
    assert len(names) >= 2
