"""The quick start, typed as it is written: its files, then its commands, in an own folder."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.cli import main

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
FILES = re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line != "make setup"  # what runs the tests
]


def test_the_page_names_files_and_commands() -> None:
    assert [name for name, _ in FILES] == ["data/mine.csv", "profiles/mine.yaml"]
    assert len(COMMANDS) >= 5 and all(line.startswith(".venv/bin/tatara ") for line in COMMANDS)


@pytest.mark.runs(
    "tatara check mine --deep",
    "tatara plan mine",
    "tatara train mine",
    "tatara train mine --resume latest",
    "tatara chat latest",
    "tatara generate latest --input data/mine.csv --output outputs/answers.jsonl",
    "tatara report latest",
)
def test_from_a_csv_to_a_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (marker,) = request.node.iter_markers("runs")
    assert [f".venv/bin/{command}" for command in marker.args] == COMMANDS
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(ROOT / "data" / "demo")
    (tmp_path / "profiles").mkdir()
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TATARA_OUTPUTS", raising=False)
    question = io.BytesIO(b"What is the capital of Japan?\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(question, encoding="utf-8"))
    said = {}
    for line in COMMANDS:
        code, said[line] = typed(shlex.split(line)[1:], capsys)
        assert code == 0, f"{line}\n{said[line]}"
    assert "no mistakes found" in said[".venv/bin/tatara check mine --deep"]
    (final,) = tmp_path.glob("outputs/mine/*/final")
    assert (final / "model.safetensors").is_file()
    assert (final.parent / "report.html").is_file()
    assert said[".venv/bin/tatara chat latest"].strip()
    answers = (tmp_path / "outputs/answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in answers]
    assert sum(row["output"] == row["answer"] for row in rows) > len(rows) // 2


def typed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and output of a command: trainings as processes, the others in this one."""
    if arguments[0] != "train":
        code = main(arguments)
        shown = capsys.readouterr()
        return code, shown.out + shown.err
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workloads.cli", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
