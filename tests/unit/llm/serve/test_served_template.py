"""A server that renders the served template asks exactly what `tatara chat` asks."""

from typing import Any

import pytest

from tests.support.chat_models import FAMILIES, chat_tokenizer
from workloads.errors import UserError
from workloads.llm.config import LlmData
from workloads.llm.serve.template import served_template
from workloads.llm.speaker import Speaker

pytestmark = pytest.mark.unit

TALKS = (
    [{"role": "user", "content": '犬は"何"匹? {{x}} \\ 😀\n'}],
    [{"role": "system", "content": " Be {short}.\n"}, {"role": "user", "content": "hi"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\nd"},
    ],
)
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "around": {"prompt_suffix": " Think.\n", "system_prompt": 'Be "q" \\n {{ }}'},
    "prefixes": {"prompt_prefix": "P: ", "answer_prefix": "A:\n"},
    "merged": {"system_turn": "merge", "system_prompt": "S"},
    "kept": {"format": "messages", "system_turn": "keep"},
    "template": {"prompt": "質問: {q}?", "answer": "{a}", "format": "template"},
    "completion": {"format": "prompt_completion"},
    "text": {"format": "text"},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"named"}))
def test_the_prompt_is_the_one_of_training(family: str, settings: str) -> None:
    data = LlmData.model_validate({"source": "x", **SETTINGS[settings]})
    tokenizer = chat_tokenizer(family)
    speaker = Speaker(None, tokenizer, data, "x", "x")
    served = chat_tokenizer(family)
    served.chat_template = served_template(tokenizer, data)
    compared = 0
    for talk in TALKS:
        try:
            wanted = speaker.prompt(talk)
        except UserError:
            continue
        compared += 1
        assert (
            served.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == wanted
        )
    assert compared >= 2


def test_several_templates_and_no_default_are_refused() -> None:
    with pytest.raises(UserError, match="one chat template"):
        served_template(chat_tokenizer("named"), LlmData(source="x"))
