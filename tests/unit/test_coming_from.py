"""Commands of the guide for the toolkit: those that need no model run as written."""

import re
import shlex
from pathlib import Path

import pytest

from workloads.cli import main
from workloads.config.merge import resolve

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
