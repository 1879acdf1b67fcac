"""What a run's summary and report say got better."""

from pathlib import Path

import pytest

from tests.support.run_files import Written
from workloads.config.merge import resolve
from workloads.grpo.finish import reward_changes
from workloads.llm.finish import _results as llm_results
from workloads.monitor.html import report
from workloads.monitor.reading.settings import read_facts
from workloads.vla.finish import _changes as vla_results

pytestmark = pytest.mark.unit


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path).begun().losses([4.0, 3.0])


def tile(written: Written, name: str) -> str:
    return dict(report._results(read_facts(written.run).snapshot))[name]


def test_one_evaluation_gives_one_number(written: Written) -> None:
    """O-A14a: nothing was measured before, so nothing is said to have changed."""
    written.run.eval_metric({"step": 100, "eval_loss": 2.11})
    assert dict(llm_results(written.run))["held-out loss"] == "2.11  (perplexity 8.2)"
    assert list(dict(vla_results(written.run)).values()) == ["2.11"]
    assert tile(written, "held-out loss") == "2.11"


def test_two_evaluations_give_a_change(written: Written) -> None:
    for step, loss in ((0, 3.0), (50, 2.5), (100, 2.11)):
        written.run.eval_metric({"step": step, "eval_loss": loss})
    told = dict(llm_results(written.run))["held-out loss"]
    assert told == "3 → 2.11  (perplexity 20.1 → 8.2)"
    assert list(dict(vla_results(written.run)).values()) == ["3 → 2.11"]
    assert tile(written, "held-out loss") == "3 → 2.11"


def test_one_logged_reward_is_one_number() -> None:
    """O-A14a: the same for the rewards of GRPO."""
    config, _ = resolve(Path("profiles/demo-grpo.yaml"), {})
    once = [{"step": 1, "reward": 0.25}]
    assert reward_changes(once, config) == [("reward sum", "0.25")]
    twice = [*once, {"step": 2, "reward": 0.5}]
    assert reward_changes(twice, config)[0] == ("reward sum", "0.25 → 0.5")
