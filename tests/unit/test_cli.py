"""The command line as people know it: version, help, completion, and mistakes in one sentence."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from workloads.cli import COMMANDS, main, parser
from workloads.commands.parsing import CommandParser, load_all, split_settings

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def every_parser(parent: CommandParser) -> list[CommandParser]:
    below = parent._commands.choices.values() if parent._commands else ()
    return [parent, *(inner for child in below for inner in every_parser(child))]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out.startswith("tatara 0.")


def test_every_command_and_option_has_a_line_of_help() -> None:
    for command in every_parser(load_all(parser())):
        assert command.description, command.prog
        for action in command._actions:
            shown = action.help
            assert shown, f"{command.prog}: {action.option_strings or action.dest} has no help"


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EACCES, 2, "x/y: Permission denied; give yourself the right"),
        (errno.EROFS, 2, "x/y: Read-only file system; give yourself the right"),
        (errno.ENOSPC, 1, "x/y: no room is left there"),
    ],
)
def test_a_file_that_cannot_be_written_is_a_sentence(
    number: int,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    problem = OSError(number, os.strerror(number), "x/y")
    monkeypatch.setattr("workloads.commands.verify.main", Mock(side_effect=problem))
    assert main(["verify", "x"]) == code
    assert capfd.readouterr().err.startswith(f"tatara: {said}")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert all(f"    {name} " in shown and line in shown for name, (_, line) in COMMANDS.items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evl"], "tatara: unknown command 'evl'; did you mean 'eval'?"),
        (["eval", "gsm9k"], "tatara: eval: unknown task 'gsm9k'; did you mean 'gsm8k'?"),
        (["data", "inspekt"], "tatara: data: unknown action 'inspekt'; did you mean 'inspect'?"),
        (["check", "dmo"], "tatara: no profile 'dmo' in profiles/; did you mean 'demo'?"),
        (["check", "demo", "lr=1"], "unknown setting 'lr'; did you mean optim.learning_rate=…?"),
        (["check", "demo", "optim.lr=1"], "'optim.lr'; did you mean optim.learning_rate=…?"),
        (["check", "demo", "--max-new-tokens", "8"], "did you mean evaluation.max_new_tokens=…?"),
        (["plan", "demo", "--gpuu", "x"], "plan: unknown option '--gpuu'; did you mean '--gpu'?"),
        (["train", "demo", "--resumme"], "unknown option '--resumme'; did you mean '--resume'?"),
        (["train", "demo", "--lerning_rate", "1"], "did you mean '--learning_rate'?"),
        (["monitor", "--onec"], "monitor: unknown option '--onec'; did you mean '--once'?"),
        (["eval", "gsm8k", "x", "--shot", "1"], "'--shot'; did you mean '--shots'?"),
        (["--trian"], "tatara: unknown option '--trian'; see tatara --help"),
        (["train", "--resum"], "train: unknown option '--resum'; did you mean '--resume'?"),
        (["chat", "--temprature", "0"], "chat: unknown option '--temprature'; did you mean '--te"),
        (["eval", "gsm8k", "--q"], "eval gsm8k: unknown option '--q'; see tatara eval gsm8k --h"),
        (["plan", "demo", "--gpu", "rtx4090x"], "unknown card 'rtx4090x'; did you mean 'rtx-4090'"),
        (["chat", "nothing"], "found no 'nothing'"),
        (["monitor", "--qqq"], "tatara: unexpected '--qqq'; see --help"),
        (["check"], "check: the following arguments are required: PROFILE; see tatara check"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_nearest_name(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert sentence in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["check", "demo"], ["train", "demo"], ["models"], ["submit", "slurm", "demo"]]
)
def test_outside_of_a_checkout_its_folder_is_asked_for(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert f"expected profiles in {tmp_path}/profiles, found none; run tatara in the fol" in shown


@pytest.mark.parametrize("encoding", ["ascii", "euc_jp", "cp932"])
def test_a_letter_that_the_terminal_lacks_ends_nothing(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("질문,답변\nq,a\n", encoding="utf-8")
    (tmp_path / "p.yaml").write_text("workload: llm\ndata: {source: rows.csv}\n")
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "workloads.cli", "check", "p.yaml", "optim.beta2=0.9"]
    words = ["data.columns={question: 질문, answer: 답변}", "model.name=data"]
    done = subprocess.run([*command, *words], cwd=tmp_path, env=env, capture_output=True)
    assert b"Traceback" not in done.stderr
    assert b"\\uc9c8\\ubb38" in done.stdout


def test_help_of_a_command_is_found_as_in_git(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["help", "rent", "lambda"], ["rent", "lambda", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        assert capsys.readouterr().out.startswith("usage: tatara rent lambda ")


@pytest.mark.parametrize(
    ("arguments", "own", "settings"),
    [
        (["demo", "a.b=1", "--x", "2"], ["demo"], ["a.b=1", "--x", "2"]),
        (["--batch_size", "16", "demo"], ["demo"], ["--batch_size", "16"]),
        (["--use_wandb", "demo"], ["demo"], ["--use_wandb"]),
        (["--model_name", "demo", "vla"], ["vla"], ["--model_name", "demo"]),
        (["--resume", "demo"], ["demo", "--resume"], []),
        (["demo", "--resume", "20260101-1"], ["demo", "--resume", "20260101-1"], []),
        (["demo", "--resume", "a.b=1"], ["demo", "--resume"], ["a.b=1"]),
        (["--resume=one", "demo", "--lr=-1"], ["demo", "--resume=one"], ["--lr=-1"]),
    ],
)  # fmt: skip
def test_settings_may_stand_before_the_profile(
    arguments: list[str], own: list[str], settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert split_settings(parser().command("train"), arguments) == (own, settings)


def test_an_option_that_needs_a_value_takes_one_that_looks_like_a_setting() -> None:
    words = ["slurm", "demo", "--array", "train.seed=1,2"]
    assert split_settings(parser().command("submit"), words) == (words, [])


@pytest.fixture(scope="module")
def bash_completion() -> str:
    command = [sys.executable, "-m", "workloads.cli", "--print-completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_completion_knows_commands_below_commands(
    bash_completion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "zsh"])
    assert not left.value.code
    for script in (bash_completion, capsys.readouterr().out):
        assert "superclevr" in script and "--resume" in script


def test_completion_in_a_real_bash(bash_completion: str) -> None:
    ask = "COMP_WORDS=(tatara eval gs); COMP_CWORD=2; _shtab_tatara; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", bash_completion + ask], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["gsm8k"], done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("train dem", ["demo", "demo-vla"]),
        ("train profiles/demo-", ["profiles/demo-vla.yaml"]),
        ("train demo --resume la", ["latest"]),
        ("chat de", ["demo", "demo/20261126-1"]),
        ("report outputs/d", ["outputs/demo"]),
        ("plan recipe-", ["recipe-16gb"]),
    ],
)
def test_names_of_profiles_and_runs_are_completed(
    words: str, found: list[str], bash_completion: str, tmp_path: Path
) -> None:
    for name in ("demo", "demo-vla", "recipes/recipe-16gb"):
        profile = tmp_path / f"profiles/{name}.yaml"
        profile.parent.mkdir(parents=True, exist_ok=True)
        profile.touch()
    (tmp_path / "outputs/demo/20261126-1").mkdir(parents=True)
    ask = f"COMP_WORDS=(tatara {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_tatara"
    ask += "; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", bash_completion + ask],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == found, done.stderr
