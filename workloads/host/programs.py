"""Runs other programs with a time limit."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProgramResult:
    """Result of a program: `code` is None where it is missing or took too long."""

    code: int | None
    out: str = ""
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return self.code == 0


def has(program: str, env: Mapping[str, str]) -> bool:
    """Whether a program is on that environment's PATH."""
    return shutil.which(program, path=env.get("PATH", os.defpath)) is not None


def run_program(words: Sequence[str], env: Mapping[str, str], seconds: float = 20) -> ProgramResult:
    """Run a program with a time limit and return its result.

    problem: its error in one line, or why there is no answer.
    """
    if not has(words[0], env):
        return ProgramResult(None, problem=f"{words[0]} is not on PATH")
    program = subprocess.Popen(
        words,
        env=dict(env),
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, errors = program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Its children hold the pipes open: the whole group has to be ended.
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        return ProgramResult(
            None, problem=f"{Path(words[0]).name} gave no answer within {seconds:g} s"
        )
    return ProgramResult(
        program.returncode, out, _complaint(errors or out) if program.returncode else ""
    )


def _complaint(text: str) -> str:
    """The line with the error: the last with the word error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no word of why"])[-1]
