"""`make demo-ja`: short, by its parts; and in full, by its claim."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from workloads.monitor.reading.samples import samples
from workloads.run import Run

pytestmark = pytest.mark.smoke
SHORT = ("train.max_steps=4", "evaluation.every_steps=4", "data.eval_rows=8")
GREETING = "こんにちは。何をお手伝いしましょうか。"
STAGES = ("demo-ja", "demo-ja-questions", "demo-ja-summaries")


def run(
    outputs: Path, module: str, *words: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TATARA_OUTPUTS": str(outputs)}
    env["TATARA_CACHE"] = str(outputs / "cache")
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, input=typed)


def runs(outputs: Path) -> dict[str, Run]:
    return {name: Run(next(outputs.glob(f"{name}/*"))) for name in STAGES}


@pytest.mark.slow
def test_three_stages_answers_and_a_line_to_type(tmp_path: Path) -> None:
    done = run(tmp_path, "workloads.llm.demo", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = runs(tmp_path)
    base = found["demo-ja"].final
    for name in STAGES[1:]:
        assert found[name].config().model.name == str(base)
        assert (found[name].final / "adapter_model.safetensors").is_file()
        for sample in samples(found[name]):
            assert list(sample.outputs) == [0, 4], "before and after, as the report shows them"
            assert f"question  {sample.asked}" in done.stdout
    assert done.stdout.count("    before  ") == done.stdout.count("    after   ") == 9
    assert f"--adapter questions={found[STAGES[1]].final}" in done.stdout
    again = run(tmp_path, "workloads.llm.demo", "--resume", *SHORT)
    assert again.returncode == 0 and again.stdout.count("done before") == 3


def test_a_mistaken_word_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "workloads.llm.demo", "quick")
    assert done.returncode == 2 and "expected settings as name=value" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_full_each_adapter_answers_as_it_was_taught(tmp_path: Path) -> None:
    done = run(tmp_path, "workloads.llm.demo")
    assert done.returncode == 0, done.stdout + done.stderr
    found = runs(tmp_path)
    for name in STAGES:
        asked = samples(found[name])
        assert len(asked) == 3
        for sample in asked:
            assert sample.outputs[0] != sample.answer, "it cannot do it before"
            assert sample.outputs[max(sample.outputs)] == sample.answer, sample
    assert done.stdout.count("3 of 3 answers as in the rows held out") == 3
    lines = list[str]()
    for name in STAGES[1:]:
        lines += [f"/adapter {name.removeprefix('demo-ja-')}"]
        lines += [line for sample in samples(found[name]) for line in ("/reset", sample.asked)]
    lines += ["/adapter base", "/reset", "こんにちは。"]
    held = [f"--adapter={name.removeprefix('demo-ja-')}={found[name].final}" for name in STAGES[1:]]
    base = str(found["demo-ja"].final)
    talk = run(
        tmp_path, "workloads.cli", "chat", base, *held, "--temperature", "0", typed="\n".join(lines)
    )
    assert talk.returncode == 0, talk.stderr
    learnt = [sample for name in STAGES[1:] for sample in samples(found[name])]
    answers = [sample.answer for sample in learnt]
    assert talk.stdout.splitlines() == [*answers, GREETING]
