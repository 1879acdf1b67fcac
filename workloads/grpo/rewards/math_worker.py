"""The process in which math-verify compares texts: lines of JSON in, lines of JSON out.

Started by `math_checker` as a plain script. It imports nothing of this project, so that it starts
in under a second and isolates a training's memory from a model's text.
"""

import json
import os
import resource
import select
import sys
from typing import Any, TextIO

PHASE_DONE = "phase done"
MEMORY_BYTES = 4 << 30
_LOOK_FOR_PARENT_SECONDS = 5.0


def main() -> None:
    """Answer requests `[left, right, seconds]` until the input ends or the parent is gone.

    After each piece of work that math-verify limits in time a line says so; the last line of an
    answer is `{"match": bool, "first": text of left's first parse result or null}`.
    """
    answers = _claim_output()
    import math_verify  # here, not above: what it prints must not reach `answers`

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _say(answers, "ready")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the LaTeX parser complains at length
    parent = os.getppid()
    while _request_waits(parent):
        line = sys.stdin.buffer.readline()
        if not line:
            break
        left, right, seconds = json.loads(line)
        _say(answers, _compare(math_verify, answers, left, right, seconds))


def _compare(
    math_verify: Any, answers: TextIO, left: str, right: str, seconds: int | None
) -> dict[str, Any]:
    """`seconds`: for each phase; None: math-verify's own limit."""
    parsing = {} if seconds is None else {"parsing_timeout": seconds}
    parsed_left = math_verify.parse(left, **parsing)
    _say(answers, PHASE_DONE)
    parsed_right = math_verify.parse(right, **parsing)
    _say(answers, PHASE_DONE)
    comparing = {} if seconds is None else {"timeout_seconds": seconds}
    match = bool(math_verify.verify(parsed_left, parsed_right, **comparing))
    _say(answers, PHASE_DONE)
    return {"match": match, "first": _as_text(parsed_left)}


def _as_text(parsed: list[Any]) -> str | None:
    if not parsed:
        return None
    try:
        return str(parsed[0])
    # Printing may raise any error of the symbolic library: recursion, too many digits, memory.
    except Exception:
        return None


def _claim_output() -> TextIO:
    """Keep the real output for answers; prints of libraries go to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, message: Any) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _request_waits(parent: int) -> bool:
    """Wait for a request; False once the parent is gone, even if a copy of the pipe lives on."""
    while not select.select([0], [], [], _LOOK_FOR_PARENT_SECONDS)[0]:
        if os.getppid() != parent:
            return False
    return True


if __name__ == "__main__":
    main()
