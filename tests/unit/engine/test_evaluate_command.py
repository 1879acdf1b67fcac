"""What every evaluation takes: a run or a model, however it is spelt."""

import argparse
from pathlib import Path

import pytest

from workloads.catalogue import WORKLOADS
from workloads.commands.parsing import CommandParser
from workloads.engine.evaluate_command import Progress, Target, add_target, target_of
from workloads.errors import UserError
from workloads.run import Run

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "demo" / "20260101-000000-abcd")
    run.final.mkdir(parents=True)
    (run.path / "manifest.json").write_text("{}")
    (run.path / "config.json").write_text('{"config": {"workload": "vla"}}')
    return run


def target(run: Run, *words: str) -> Target:
    parser = CommandParser(prog="tatara eval reach")
    add_target(parser, "folder", precision=False)
    args = parser.parse_args([*words])
    args.precision = "fp32"
    return target_of(args, {"TATARA_OUTPUTS": str(run.path.parents[1])}, "vla")


@pytest.mark.parametrize("words", [("latest",), ("--run", "latest"), ("--run", "FOLDER")])
def test_a_run_is_named_with_and_without_its_flag(run: Run, words: tuple[str, ...]) -> None:
    found = target(run, *(word.replace("FOLDER", str(run.path)) for word in words))
    assert (found.name, found.run) == (str(run.final), run)
    assert found.folder == run.evaluation / "eval"


def test_a_model_is_named_with_and_without_its_flag(run: Run) -> None:
    for words in (("--model", "me/model"), ("me/model",)):
        found = target(run, *words, "--out", "here")
        assert (found.name, found.run, found.output) == ("me/model", None, Path("here"))
        assert found.folder == run.path.parents[1] / "eval" / "me--model"
    assert target(run, "latest", "--output", "here").output == Path("here")


def test_neither_and_both_are_mistakes(run: Run) -> None:
    for words in ((), ("latest", "--model", "me/model")):
        with pytest.raises(UserError):
            target(run, *words)


@pytest.mark.parametrize(
    "name", [name for workload in WORKLOADS.values() for name in workload.tasks]
)
def test_every_task_takes_a_run_in_all_spellings(name: str) -> None:
    import importlib

    (module,) = (
        workload.tasks[name][0] for workload in WORKLOADS.values() if name in workload.tasks
    )
    parser = argparse.ArgumentParser()
    importlib.import_module(module).add_arguments(parser)
    needed = ["--prompts", "a", "--images", "b"] if "--prompts" in parser.format_help() else []
    needed += ["--tasks", "a"] if "--tasks" in parser.format_help() else []
    assert parser.parse_args(["--run", "latest", *needed]).run == "latest"
    assert parser.parse_args(["latest", *needed]).target == "latest"
    assert parser.parse_args(["latest", "--out", "x", *needed]).output == Path("x")


def test_a_log_is_told_of_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("questions")
    for done in range(0, 201):
        progress(done, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{20 * tenth} of 200 questions" for tenth in range(1, 11)]
