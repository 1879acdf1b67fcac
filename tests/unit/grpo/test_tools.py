"""Tools that a profile names, and the calculator."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.grpo.config import Tools
from workloads.grpo.rewards.scoring import completion_text
from workloads.grpo.tools import calculate, load_tools

pytestmark = pytest.mark.unit
HERE = "tests.unit.grpo.test_tools"


def untold(expression):  # type: ignore[no-untyped-def]
    return expression


class Endless:
    """An environment without reset."""


class Unrewarded:
    def reset(self, **row: Any) -> None: ...


class Costly:
    def __init__(self, key: str) -> None: ...

    def reset(self, **row: Any) -> None: ...


@pytest.mark.parametrize(
    ("expression", "value"),
    [("3 + 4", "7"), (" (3 + 4) * -2 ", "-14"), ("7 / 2", "3.5"), ("7 // 2", "3"), ("7 % 4", "3")],
)
def test_the_calculator(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "9 ** 9", "'a' * 9", "True", "1 if 1 else 2", "10 ** 6", "1 / 0", "(", ""]
    + ["9" * 13, "[1] * 9", "999999999999 * 999999999999"],
)
def test_the_calculator_takes_nothing_else(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError, ZeroDivisionError)):
        calculate(expression)


def test_a_prompt_shows_a_tools_schema() -> None:
    (schema,) = load_tools(Tools(functions=("workloads.grpo.tools:calculate",))).schemas
    assert schema["function"]["name"] == "calculate"
    assert list(schema["function"]["parameters"]["properties"]) == ["expression"]
    assert not load_tools(Tools()).schemas


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({"functions": ("nowhere",)}, 'tool: expected "module:function", found "nowhere"'),
        ({"functions": ("workloads.grpo.tools:calculat",)}, "did you mean"),
        ({"functions": (f"{HERE}:untold",)}, "tool untold: expected type hints and a docstring"),
        ({"functions": ("workloads.grpo.tools:calculate",) * 2}, "is the name of two tools"),
        ({"environment": f"{HERE}:Endless"}, "expected a class with a method reset"),
        ({"environment": f"{HERE}:calculate"}, "expected a class with a method reset"),
        ({"environment": f"{HERE}:Costly"}, "expected to make one without arguments"),
    ],
)
def test_what_is_no_tool_is_named(tools: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", "\\(")):
        load_tools(Tools(**tools))


def test_without_rewards_an_environment_brings_its_own() -> None:
    tools = Tools(environment=f"{HERE}:Unrewarded")
    assert load_tools(tools).environment is Unrewarded
    with pytest.raises(UserError, match="expected a method get_reward, since the profile has no"):
        load_tools(tools, is_rewarded=False)


def test_a_template_that_shows_no_calls_is_refused() -> None:
    tools = load_tools(Tools(functions=("workloads.grpo.tools:calculate",)))
    with pytest.raises(UserError, match="expected a chat template that shows calls"):
        tools.check(AutoTokenizer.from_pretrained("data/demo/tiny-llama"))


def test_what_a_tool_answers_is_not_what_the_model_said() -> None:
    turns = [
        {"role": "assistant", "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "reasoning_content": "easy", "content": "so 41"},
    ]
    assert completion_text(turns) == "<think>easy</think>so 41"


PROFILE = """\
workload: grpo
summary: tools
model: {name: some/model}
data: {source: rows.jsonl}
tools: ["workloads.grpo.tools:calculate"]
"""


def test_tools_and_what_asks_without_them(tmp_path: Path) -> None:
    path = tmp_path / "tools.yaml"
    path.write_text(PROFILE)
    config, _ = resolve(path, {}, ["evaluation.rows=0"])
    assert config.tools.functions == ("workloads.grpo.tools:calculate",)
    with pytest.raises(UserError, match="set evaluation.rows=0"):
        resolve(path, {}, [])
    with pytest.raises(UserError, match="the supervised stage calls none"):
        resolve(path, {}, ["stage=sft"])
