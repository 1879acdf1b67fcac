"""`--deep`: import the packages, run a forward and backward pass, join two ranks.

Each in a process of its own with a time limit, by the Python that runs this; they run `trial.py`.
"""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence

from workloads.catalogue import WORKLOADS
from workloads.doctor.facts import Facts
from workloads.findings import Finding
from workloads.host.programs import ProgramResult, run_program

_IMPORT_SECONDS, _COMPUTE_SECONDS, _SPEAK_SECONDS = 300.0, 120.0, 120.0


def checks(facts: Facts) -> list[Finding]:
    """Three trials; a reason to skip them where this Python has no torch."""
    if importlib.util.find_spec("torch") is None:
        name = facts.services[0].name if facts.services else "SERVICE"
        profile = facts.profile or "PROFILE"
        inside = f"docker compose --profile {profile} run --rm {name} doctor {profile} --deep"
        how = inside if facts.in_docker else "make setup"
        return [Finding("trials", "skipped", f"no torch in this Python; `{how}` has it")]
    names = WORKLOADS[facts.config.workload].packages if facts.config else ("torch",)
    return [packages(facts, names), compute(facts), collective(facts)]


def _run(facts: Facts, words: list[str], seconds: float) -> ProgramResult:
    path = os.pathsep.join(part for part in sys.path if part)
    env = {**facts.env, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    return run_program([sys.executable, *words], env, seconds)


def _result(answer: ProgramResult) -> dict[str, str]:
    """The JSON object that a trial printed; libraries print other lines around it."""
    for line in reversed(answer.out.splitlines()):
        if line.startswith("{"):
            found: dict[str, str] = json.loads(line)
            return found
    return {}


def packages(facts: Facts, names: Sequence[str]) -> Finding:
    """Import them, and name the versions."""
    answer = _run(facts, ["-m", "workloads.doctor.trial", "imports", *names], _IMPORT_SECONDS)
    result = _result(answer)
    failed = {name: what for name, what in result.items() if not re.match(r"\d", what)}
    if not result or failed:
        found = "; ".join(f"{name}: {what}" for name, what in failed.items()) or answer.problem
        return Finding("packages", "error", found, needed=", ".join(names), fix="make setup")
    found = ", ".join(f"{name} {version}" for name, version in result.items())
    return Finding("packages", "ok", found, needed="imports without errors")


def compute(facts: Facts) -> Finding:
    """Compare a small layer on the device with the same on the CPU."""
    answer = _run(facts, ["-m", "workloads.doctor.trial", "compute"], _COMPUTE_SECONDS)
    result = _result(answer)
    needed = "finite gradients that agree with the CPU's"
    if not answer.is_good or not result:
        fix = "compare driver and compute capability above with torch's build"
        return Finding("forward and backward", "error", answer.problem, needed=needed, fix=fix)
    if result["device"] == "CPU" and facts.cards and facts.build.cuda and not facts.in_docker:
        fix = "compare driver and compute capability above with torch's build"
        found = f"torch uses the CPU and leaves {facts.cards[0].name}"
        return Finding("forward and backward", "error", found, needed="on the GPU", fix=fix)
    found = f"{result['device']}, {result['dtype']}: off by {result['error']}"
    return Finding("forward and backward", "ok", found, needed=needed)


def collective(facts: Facts) -> Finding:
    """All-reduce between two ranks under torchrun."""
    # Both ranks are local: they must meet even if the host's own name does not resolve.
    here = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    words = ["-m", "torch.distributed.run", *here, "-m", "workloads.doctor.trial", "collective"]
    answer = _run(facts, words, _SPEAK_SECONDS)
    result = _result(answer)
    needed = "2 ranks that add up their numbers"
    if not result:
        fix = "NCCL_DEBUG=INFO shows where they wait; see the rows on P2P and interfaces"
        return Finding("collective", "error", answer.problem, needed=needed, fix=fix)
    return Finding("collective", "ok", f"{result['backend']} on {result['device']}", needed=needed)
