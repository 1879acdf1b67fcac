"""Rewards in threads and worker processes, against hostile input, and as plug-ins."""

import logging
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest

from workloads.errors import TataraError, UserError
from workloads.grpo import prompts
from workloads.grpo.rewards import answers, scoring
from workloads.grpo.rewards import functions as rewards
from workloads.grpo.rewards.math_checker import MathChecker, MathVerdict, shared_checker

pytestmark = pytest.mark.unit

RIGHT = ("<think>3 and 4</think><answer> $\\frac{14}{2}$ </answer>", "<answer> 7 </answer>")
WRONG = ("<think>3 and 5</think><answer> 8 </answer>", "<answer> 7 </answer>")
PAIRS = [RIGHT, WRONG] * 8
SCORES = [1.0, 0.0] * 8
ENDLESS = "$2^{99999999999}$"  # math-verify works on it until its own limit stops it


def score(pairs: list[tuple[str, str]]) -> list[float]:
    return [rewards.accuracy(*pair) for pair in pairs]


def test_scores_in_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: rewards.accuracy(*pair), PAIRS)) == SCORES


def _score_into(queue: "SimpleQueue[list[float]]") -> None:
    queue.put(score(PAIRS))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_scores_in_worker_processes(method: str) -> None:
    assert score(PAIRS) == SCORES  # so that a fork inherits a process that is not its own
    before = shared_checker().pid
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=_score_into, args=(queue,), daemon=True)
    worker.start()
    assert queue.get() == SCORES
    worker.join()
    assert score(PAIRS) == SCORES
    assert shared_checker().pid == before


def test_the_callers_alarm_is_left_alone() -> None:
    rung = threading.Event()
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert score(PAIRS) == SCORES
        assert rung.wait(10)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_what_does_not_come_back_is_killed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = MathChecker()
    assert checker.compare(*RIGHT).match
    first = checker.pid
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(checker, "_phase_seconds", 1.0)  # sooner than math-verify's own limit
        assert checker.compare(ENDLESS, "$7$") == MathVerdict(match=False, first=None)
    assert "timed out" in caplog.text
    assert first is not None and not Path(f"/proc/{first}").exists()
    assert checker.compare("$8$", "$8$").match
    assert checker.pid not in (None, first)
    checker.close()


def test_a_killed_process_is_replaced_within_the_question() -> None:
    checker = MathChecker()
    assert checker.compare(*RIGHT).match
    assert checker.pid is not None
    os.kill(checker.pid, signal.SIGKILL)
    assert checker.compare("$8$", "$8$").match
    assert not checker.compare("$8$", "$9$").match
    checker.close()


def test_the_same_question_costs_once(caplog: pytest.LogCaptureFixture) -> None:
    checker = MathChecker(phase_seconds=1.0)
    verdicts = [checker.compare(ENDLESS, "$7$") for _ in range(50)]
    assert verdicts == [MathVerdict(match=False, first=None)] * 50
    assert caplog.text.count("timed out") == 1
    checker.close()


def test_no_process_outlives_a_killed_parent() -> None:
    code = (
        "from workloads.grpo.rewards.math_checker import shared_checker\n"
        "shared_checker().compare('$7$', '$7$')\n"
        "print(shared_checker().pid, flush=True)\n"
        "input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None and parent.stdout is not None
    handle = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert select.select([handle], [], [], 60)[0], "still there"
    for opened in (parent.stdin, parent.stdout, os.fdopen(handle)):
        opened.close()


def test_any_text_is_answered() -> None:
    texts = [
        "",
        "\0",
        "\ud800",
        "\n\n7\n",
        "$" + "(" * 40 + "1" + ")" * 40 + "$",
        "answer " * 500,
    ]
    for text in texts:
        assert rewards.accuracy(text, text) == 1.0
        assert rewards.accuracy(text, "<answer> 5 </answer>") == 0.0


def test_the_gap_that_accuracy_has_and_accuracy_extracted_has_not() -> None:
    completion = "<think>The answer is 7.</think><answer>8</answer>"
    assert rewards.accuracy(completion, "<answer> 7 </answer>") == 1.0
    assert rewards.accuracy_extracted(completion, "<answer> 7 </answer>") == 0.0
    assert rewards.accuracy_extracted(completion, "<answer> 8 </answer>") == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think><answer> 7 </answer>", "7"),
        ("<answer>7</answer><think>a</think>", "7"),
        ("<think>maybe <answer> 8 </answer></think>\n<answer>\n7\n</answer>", "7"),
        ("maybe <answer> 8 </answer></think><answer>7</answer>", "7"),
        ("<think>a<think>b</think> <answer>8</answer></think><answer>7</answer>", "7"),
        ("<answer>7</answer><answer>8</answer>", "7"),
        ("<answer><answer>7</answer></answer>", "7"),
        ("<think>so it is 7</think>", None),
        ("<answer> </answer>", None),
        ("7", None),
    ],
)
def test_extracted_answer(text: str, answer: str | None) -> None:
    assert answers.extract_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("There are 7 items.", "7"),
        ("**7**", "7"),
        ("7.0", "7"),
        ("2+5=7", "7"),
        ("1,234", "1234"),
        ("７", "7"),
        ("-3", "−3"),
        ("50%", "0.5"),
        ("Yes", "yes"),
        ("140 degrees", "140°"),
        ("$140^\\circ$", "140°"),
        ("5\\sqrt{3}", "5√{3}cm"),
        ("2√{5}", "√20"),
        ("3/5", "\\frac{3}{5}"),
        ("1:2", "0.5"),
        ("24", "24cm^{2}"),
        ("2, 1", "1, 2"),
        ("10π", "$10\\pi$"),
        ("\\boxed{7}", "7"),
        ("1e3", "1000"),
        ("½", "0.5"),
        ("1⁄2", "0.5"),
        ("5²", "25"),
        ("24 cm²", "24"),
        ("1+2x", "2x + 1"),
        ("x = 5, y = 3", "x=5, y=3"),
        ("(1, 2)", "(1,2)"),
        ("1,234 and 5", "5; 1234"),
        ("7m", "7"),
        ("b) 7", "7"),
        ("- 3", "-3"),
        ("x = - 3", "-3"),
        ("５", "$5$"),
        ("sqrt(2)", "√2"),
        ("5*sqrt(3)", "5√{3}cm"),
        ("1e-3", "$10^{-3}$"),
        ("1, 2", "(1, 2)"),
    ],
)
def test_same_answers(answer: str, truth: str) -> None:
    assert answers.answers_match(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("8", "7"),
        ("17", "7"),
        ("-7", "7"),
        ("x7", "7"),
        ("3 or 4", "4"),  # naming several numbers is no answer to a question for one
        ("1 2 3 4 5 6 7", "7"),
        ("5√2", "5√{3}"),  # nor is a number inside of an expression
        ("5√3", "5"),
        ("1:3", "1:2"),
        ("1, 3", "1, 2"),
        ("10π", "10"),
        ("7^2", "7"),
        ("7/0", "7"),
        ("7" * 5000, "7"),
        ("", ""),
        ("1e3", "1"),  # nor are its first digits a number
        ("5²", "5"),
        ("7x", "7"),
        ("1x+2", "2x+1"),
        ("x = 4, y = 3", "x = 5, y = 3"),  # each of several answers counts
        ("(2, 1)", "(1, 2)"),
        ("3½", "15.5"),
        ("- 3", "3"),
        ("3 or 7", "$7$"),  # nor, beside an expression, does the last of several numbers count
        ("AB=5, CD=7", "\\boxed{7}"),
        ("2, 1", "(1, 2)"),
        ("[1, 2]", "(1, 2)"),
    ],
)
def test_different_answers(answer: str, truth: str) -> None:
    assert not answers.answers_match(answer, truth)


PLUG_IN = """
calls = []
constant = 3
def brief(completion): return len(completion) < 5
def same(completion, solution): return completion == solution
def broken(completion, solution): return 1 / 0
def wordy(completion, solution): return "much"
def greedy(completion, solution, image): return 1.0
def split(completion, solution): return float(completion.index("</think> <answer>") >= 0)
"""


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with rewards in the current folder."""
    name = f"plug_in_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PLUG_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_plug_ins(plug_ins: str) -> None:
    brief = scoring.load_reward(f"{plug_ins}:brief", weight=0.5)
    assert (brief.name, brief.weight) == (f"{plug_ins}:brief", 0.5)
    assert (brief("abc", "7"), brief("abcdef", "7")) == (1.0, 0.0)
    assert scoring.load_reward(f"{plug_ins}:same")("7", "7") == 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("brieff", 'did you mean "{m}:brief"'),
        ("constant", "found a int"),
        ("greedy", "found (completion, solution, image)"),
    ],
)
def test_plug_ins_that_do_not_fit(plug_ins: str, function: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        scoring.load_reward(f"{plug_ins}:{function}")
    assert message.format(m=plug_ins) in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("acuracy", 'did you mean "accuracy"'),
        ("no_such_module_here:f", 'no module "no_such_module_here"'),
        ("a b:f", '"module:function"'),
        ("module:", '"module:function"'),
    ],
)
def test_rewards_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        scoring.load_reward(spec)
    assert message in str(refused.value)


def test_plug_ins_that_fail_are_named(plug_ins: str) -> None:
    with pytest.raises(TataraError, match=f"{plug_ins}:broken failed with ZeroDivisionError"):
        scoring.load_reward(f"{plug_ins}:broken")("7", "7")
    with pytest.raises(TataraError, match="finite number"):
        scoring.load_reward(f"{plug_ins}:wordy")("7", "7")


def test_plug_ins_are_tried_on_a_right_answer(plug_ins: str) -> None:
    load = scoring.load_reward
    every = [
        load("accuracy_extracted"),
        load("accuracy"),
        load("format"),
        load(f"{plug_ins}:split"),
    ]
    for solution in ("7", "<answer> 7 </answer>"):
        said = rewards.right_completion(solution)
        assert scoring.try_rewards(every, said, solution) == []
    (line,) = scoring.try_rewards(every[:1], "<think> I count. </think> 7", "7")
    assert line.startswith("reward accuracy_extracted gives 0 to '<think> I count. </think> 7'")
    with pytest.raises(TataraError, match=f"{plug_ins}:broken failed with ZeroDivisionError"):
        scoring.try_rewards([load(f"{plug_ins}:broken")], "7", "7")


def test_plug_ins_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="found no signature"):
        scoring.load_reward("builtins:max")
    name = f"script_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="found SystemExit: 3; fix the module"):
        scoring.load_reward(f"{name}:reward")


def test_weights_are_numbers() -> None:
    with pytest.raises(UserError, match="finite weight"):
        scoring.load_reward("format", weight=float("nan"))


def test_as_the_trainer_calls_it() -> None:
    function = scoring.for_trainer(scoring.load_reward("accuracy_extracted"))
    turns = [
        [{"role": "assistant", "content": "<answer>7</answer>"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "<answer>8</answer>"}]}],
    ]
    found = function(completions=turns, solution=["7", "7"], prompts=["", ""], image=[None, None])
    assert (found, function.__name__) == ([1.0, 0.0], "accuracy_extracted")
    assert function(completions=["<answer> 7 </answer>"], solution=["7"]) == [1.0]


def test_a_step_of_grpo_says_what_was_earned() -> None:
    from workloads.engine.training.callbacks import progress_line

    row = {"loss": -2e-8, "reward": 1.25, "rewards/accuracy/mean": 0.5, "learning_rate": 1e-6}
    assert progress_line(3, 8, row) == "step 3/8  reward 1.25  loss -2e-08  lr 1e-06"
    row |= {"rewards/my.module:length/mean": 0.75, "rewards/accuracy/std": 0.1}
    wanted = "step 3/8  reward 1.25  accuracy 0.5  length 0.75  loss -2e-08  lr 1e-06"
    assert progress_line(3, 8, row) == wanted
    assert progress_line(3, 8, {"loss": 2.5}) == "step 3/8  loss 2.5"


def test_prompts_to_the_letter() -> None:
    def text(wording: str) -> str:
        turn = prompts.image_turns("How many {x}?", wording)[0]
        assert turn["role"] == "user" and turn["content"][0] == {"type": "image"}
        return turn["content"][1]["text"]

    rest = (
        "utput the thinking process in <think> </think> and final answer (number) in "
        "<answer> </answer> tags."
    )
    assert text(prompts.TRAINING) == "How many {x}?  O" + rest
    assert text(prompts.GEOQA) == "How many {x}? O" + rest
    assert text(prompts.SUPERCLEVR) == "How many {x}? First o" + rest
    assert [turn["role"] for turn in prompts.text_turns("1+1?")] == [
        "system",
        "user",
    ]
