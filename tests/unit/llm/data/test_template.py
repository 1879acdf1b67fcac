"""From rows to tokens and labels: the answer is learnt, with its end, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from workloads.llm.config import LlmData
from workloads.llm.data.template import FIXED_DATE, Rendered, RowError, Template
from workloads.llm.data.tokenise import Encoder, Tokens

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
DEMO = ROOT / "data" / "demo"
ROW = {"question": "How many?", "answer": "It is 1 + 2 = <<1+2=3>>3.\n#### 3"}
CHAT = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 = <<2+3=5>>5"},
    {"role": "user", "content": "And doubled?"},
    {"role": "assistant", "content": "#### 10"},
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO / "tiny-llama")


def settings(**changes: Any) -> LlmData:
    return LlmData(**{"source": "rows.jsonl", **changes})


def rendered(data: LlmData, tokenizer: PreTrainedTokenizerBase, row: dict) -> Rendered:
    found = Template(data, tokenizer).render([row])[0]
    assert isinstance(found, Rendered), found
    return found


def tokens_of(data: LlmData, tokenizer: PreTrainedTokenizerBase, row: dict) -> Tokens:
    return Encoder(tokenizer).encode([rendered(data, tokenizer, row)])[0]


def learnt(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> list[str]:
    """The runs of tokens with a label, as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(tokens.ids.tolist(), tokens.labels.tolist(), strict=True):
        assert label in (token, -100)
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def refusal(data: LlmData, tokenizer: PreTrainedTokenizerBase, row: dict) -> str:
    found = Template(data, tokenizer).render([row])[0]
    assert isinstance(found, RowError)
    return str(found)


def test_a_question_is_given_and_its_answer_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokens_of(settings(), tokenizer, ROW)
    assert learnt(tokenizer, tokens) == [ROW["answer"] + "<|end|>"]
    turns = [
        {"role": "user", "content": ROW["question"]},
        {"role": "assistant", "content": ROW["answer"]},
    ]
    whole = tokenizer.apply_chat_template(turns)["input_ids"]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert tokens.ids.tolist() == whole
    assert tokens.labels.tolist() == [-100] * len(asked) + whole[len(asked) :]
    assert not tokens.parted


def test_the_prompt_is_what_a_model_is_given_later(tokenizer: PreTrainedTokenizerBase) -> None:
    data = settings(prompt_suffix=" Think.", system_prompt="Be short.")
    prompt = Template(data, tokenizer).prompt(ROW)
    asked = "<|begin|><|system|>Be short.<|end|><|user|>How many? Think.<|end|><|assistant|>"
    assert prompt == asked
    tokens = tokens_of(data, tokenizer, ROW)
    given = tokens.ids[tokens.labels == -100].tolist()
    assert given == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_every_turn_of_the_assistant_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    """The library marks the same tokens by the template's own `generation` blocks."""
    data = settings(format="messages")
    tokens = tokens_of(data, tokenizer, {"messages": CHAT})
    marked = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    assert tokens.ids.tolist() == marked["input_ids"]
    assert (tokens.labels != -100).astype(int).tolist() == marked["assistant_masks"]
    assert learnt(tokenizer, tokens) == [CHAT[1]["content"] + "<|end|>", "#### 10<|end|>"]


def test_answers_are_found_where_they_are_and_not_where_they_are_quoted(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    quoting = {"role": "user", "content": f"You said <|assistant|>{CHAT[1]['content']}<|end|>"}
    talks = [
        [quoting, *CHAT[1:]],
        [CHAT[0], {"role": "assistant", "content": "  spaced \n"}, *CHAT[2:]],
        [CHAT[0], CHAT[1], {"role": "assistant", "content": "again"}, *CHAT[2:]],
    ]
    rows = Template(settings(format="messages"), tokenizer).render([{"messages": t} for t in talks])
    for tokens, talk in zip(Encoder(tokenizer).encode(rows), talks, strict=True):
        marked = tokenizer.apply_chat_template(talk, return_assistant_tokens_mask=True)
        assert tokens.ids.tolist() == marked["input_ids"]
        assert (tokens.labels != -100).astype(int).tolist() == marked["assistant_masks"]


def test_turns_behind_the_last_answer_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    data = settings(format="messages")
    longer = {"messages": [*CHAT, {"role": "user", "content": "Thanks"}]}
    found = rendered(data, tokenizer, longer)
    assert replace(found, remarks=()) == rendered(data, tokenizer, {"messages": CHAT})
    assert found.remarks == (("trailing", "user"),)


def test_turns_may_carry_other_names_and_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    named = [
        {"from": "human", "value": "What is 2 + 3?", "weight": None},
        {"from": "gpt", "value": "2 + 3 = <<2+3=5>>5"},
        {"role": "user", "content": [{"type": "text", "text": "And doubled?"}]},
        {"role": "assistant", "content": "#### 10", "tool_calls": None},
    ]
    data = settings(format="messages")
    found = rendered(data, tokenizer, {"messages": named})
    assert found == rendered(data, tokenizer, {"messages": CHAT})


def test_prompt_and_completion_as_texts_or_as_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    data = settings(format="prompt_completion")
    tokens = tokens_of(data, tokenizer, {"prompt": "A?", "completion": "B"})
    assert learnt(tokenizer, tokens) == ["B<|end|>"]
    chat = tokens_of(data, tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]})
    assert learnt(tokenizer, chat) == ["#### 10<|end|>"]  # the answer in the prompt is given
    whole = tokens_of(settings(format="messages"), tokenizer, {"messages": CHAT})
    assert chat.ids.tolist() == whole.ids.tolist()


def test_of_a_text_everything_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    data = settings(format="text")
    tokens = tokens_of(data, tokenizer, {"text": "Bees make honey."})
    assert learnt(tokenizer, tokens) == ["<|begin|>Bees make honey.<|end|>"]
    assert tokens.ids.tolist() == [*tokenizer("Bees make honey.")["input_ids"], 2]
    ended = tokens_of(data, tokenizer, {"text": "Bees make honey.<|end|>"})
    assert ended.ids.tolist() == tokens.ids.tolist()
    begun = tokens_of(data, tokenizer, {"text": "<|begin|>Bees make honey."})
    assert begun.ids.tolist() == tokens.ids.tolist()


def test_without_a_chat_template_rows_are_plain(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    data = settings()
    assert "no chat template" in Template(data, tokenizer).notes()[0]
    text = rendered(data, tokenizer, ROW).text
    assert text == f"<|begin|>How many?\n{ROW['answer']}<|end|>"
    assert learnt(tokenizer, tokens_of(data, tokenizer, ROW)) == [ROW["answer"] + "<|end|>"]
    chat = rendered(settings(format="messages"), tokenizer, {"messages": CHAT}).text
    assert chat.count("<|end|>") == 2 and "doubled?\n#### 10<|end|>" in chat


def test_tokens_across_the_end_of_a_prompt_are_parted(tokenizer: PreTrainedTokenizerBase) -> None:
    """`kilomet` + `ers`: as a whole they have tokens that the prompt alone does not."""
    tokenizer.chat_template = None
    data = settings(format="prompt_completion")
    row = {"prompt": "He runs 3 kilomet", "completion": "ers a day."}
    tokens = tokens_of(data, tokenizer, row)
    asked = tokenizer(Template(data, tokenizer).prompt(row), add_special_tokens=False)["input_ids"]
    assert tokens.ids[: len(asked)].tolist() == asked and tokens.parted
    assert learnt(tokenizer, tokens) == ["ers a day.<|end|>"]
    together = tokenizer("He runs 3 kilometers a day.")["input_ids"]
    assert together[: len(asked)] != asked  # else this test shows nothing
    cut = tokens_of(data, tokenizer, {"prompt": "He runs 3", "completion": " kilometers."})
    assert not cut.parted and learnt(tokenizer, cut) == [" kilometers.<|end|>"]


def test_white_space_before_an_answer_cuts_a_prompt_as_it_does_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Two line breaks are one token at the end of a text and two before a letter."""
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}\n\n{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant\n\n{% endif %}"
    )
    data = settings()
    tokens = tokens_of(data, tokenizer, ROW)
    asked = tokenizer(Template(data, tokenizer).prompt(ROW), add_special_tokens=False)["input_ids"]
    assert tokens.ids[: len(asked)].tolist() == asked
    assert learnt(tokenizer, tokens) == [ROW["answer"] + "<|end|>"]


def test_tokenizers_that_mark_word_starts_get_no_mark_too_many() -> None:
    """SentencePiece kind: an answer encoded by itself would begin with a space of its own."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    inner.train_from_iterator([ROW["question"], ROW["answer"], "[INST] [/INST]"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '<s>[INST] ' ~ m.content ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m.content ~ '</s>' }}{% endif %}{% endfor %}"
    )
    tokens = tokens_of(settings(), tokenizer, ROW)
    text = f"<s>[INST] {ROW['question']} [/INST] {ROW['answer']}</s>"
    assert tokens.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert learnt(tokenizer, tokens) == [f"{ROW['answer']}</s>"] and not tokens.parted


def test_tokenizers_written_in_python_work_too() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert not tokenizer.is_fast
    tokens = tokens_of(settings(), tokenizer, ROW)
    assert learnt(tokenizer, tokens) == [f"{ROW['answer']}</s>"]
    asked = tokenizer("How many?\n", add_special_tokens=False)["input_ids"]
    assert tokens.ids[: len(asked)].tolist() == asked and tokens.labels[len(asked) - 1] == -100


def test_line_breaks_behind_the_end_token_are_not_learnt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content | trim ~ '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    data = settings(format="messages")
    tokens = tokens_of(data, tokenizer, {"messages": CHAT})
    assert learnt(tokenizer, tokens) == [CHAT[1]["content"] + "<|end|>", "#### 10<|end|>"]
    assert tokenizer.decode(tokens.ids).endswith("#### 10<|end|>")


def test_an_answer_without_an_end_gets_one(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokens = tokens_of(settings(), tokenizer, ROW)
    assert learnt(tokenizer, tokens)[0].endswith("#### 3\n<|end|>")


def test_a_template_that_rewrites_answers_keeps_the_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """As templates of reasoning models do: an open answer begins with a mark that history drops."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>THINK ' }}{% endif %}"
    )
    data = settings(format="messages")
    found = rendered(data, tokenizer, {"messages": CHAT})
    assert found.rebuilt
    prompt = Template(data, tokenizer).prompt({"messages": CHAT})
    assert prompt.endswith("<|assistant|>THINK ") and found.text == prompt + "#### 10<|end|>"
    tokens = Encoder(tokenizer).encode([found])[0]
    assert learnt(tokenizer, tokens) == ["#### 10<|end|>"]


def test_a_thought_that_the_prompt_has_opened_is_not_opened_again(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Templates of reasoning models end the prompt with <think>, and data begin with it."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}"
        "{{ m.content.split('</think>')[-1] ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
    )
    data = settings()
    row = {"question": "How many?", "answer": "<think>\nOne, two.\n</think>\n\n#### 2"}
    found = rendered(data, tokenizer, row)
    assert found.text == (
        "<|user|>How many?<|end|><|assistant|><think>\nOne, two.\n</think>\n\n#### 2<|end|>"
    )
    assert found.text.startswith(Template(data, tokenizer).prompt(row)) and found.rebuilt
    other = rendered(data, tokenizer, {**row, "answer": "<thinking> 2"})
    assert other.text.endswith("<think>\n\n</think>\n\n<thinking> 2<|end|>")  # L-S4
    assert other.remarks == (("closed", "</think>"),)


def test_every_answer_has_its_end_where_the_last_one_has_two(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% else %}{{ '<|pad|>' }}{% endif %}"
    )
    tokens = tokens_of(settings(format="messages"), tokenizer, {"messages": CHAT})
    expected = [CHAT[1]["content"] + "<|end|>", "#### 10<|end|>\n<|pad|>"]
    assert learnt(tokenizer, tokens) == expected
    other = tokenizer.chat_template.replace("<|end|>\n' }}", "<|end|><|pad|>' }}")
    tokenizer.chat_template = other.replace("{% else %}{{ '<|pad|>' }}", "")
    tokens = tokens_of(settings(format="messages"), tokenizer, {"messages": CHAT})
    expected = [CHAT[1]["content"] + "<|end|><|pad|>", "#### 10<|end|><|pad|>"]
    assert learnt(tokenizer, tokens) == expected


def test_the_last_answer_is_learnt_as_the_template_writes_it(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The prompt opens a thought, which history drops and the template closes for the last one."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}"
        "{% if loop.last and m.role == 'assistant' %}{{ '<think>\\n\\n</think>' }}{% endif %}"
        "{{ m.content ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
    )
    data = settings(format="messages")
    found = rendered(data, tokenizer, {"messages": CHAT})
    assert found.rebuilt and found.text.endswith("<|assistant|><think>\n\n</think>#### 10<|end|>")
    tokens = Encoder(tokenizer).encode([found])[0]
    assert learnt(tokenizer, tokens) == ["\n</think>#### 10<|end|>"]


def test_a_template_that_drops_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """As templates for pictures do, which want a list of parts."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}"
        "{% endfor %}<|end|>{% endfor %}"
    )
    assert "leaves out what a turn says" in refusal(settings(), tokenizer, ROW)


def test_a_template_that_marks_the_newest_question_keeps_the_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Earlier prompts cannot be found in the full text, so only the last answer is learnt."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}"
        "{% if m.role == 'user' and loop.index > messages | length - 2 %} (now){% endif %}"
        "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    data = settings(format="messages")
    found = rendered(data, tokenizer, {"messages": CHAT})
    assert found.rebuilt and found.text.count("(now)") == 1
    assert learnt(tokenizer, Encoder(tokenizer).encode([found])[0]) == ["#### 10<|end|>"]


def test_text_that_a_template_puts_before_the_last_answer_is_learnt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """An empty thought before the last answer only, as some templates have it."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}"
        "{% if loop.last and m.role == 'assistant' %}(no thought) {% endif %}"
        "{{ m.content ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    tokens = tokens_of(settings(format="messages"), tokenizer, {"messages": CHAT})
    expected = [CHAT[1]["content"] + "<|end|>", "(no thought) #### 10<|end|>"]
    assert learnt(tokenizer, tokens) == expected


def test_dates_in_prompts_do_not_change_with_the_day(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ 'Today: ' ~ date_string }}{% for m in messages %}{{ m.content }}<|end|>"
        "{% endfor %}"
    )
    assert FIXED_DATE in rendered(settings(), tokenizer, ROW).text


def test_unfit_rows_say_why(tokenizer: PreTrainedTokenizerBase) -> None:
    assert refusal(settings(), tokenizer, {**ROW, "answer": " \n"}) == "the answer is empty"
    assert refusal(settings(format="text"), tokenizer, {"text": "  "}) == "the text is empty"
    chat = settings(format="messages")
    assert "no turn of an assistant" in refusal(chat, tokenizer, {"messages": CHAT[:1]})
    assert "list of messages" in refusal(chat, tokenizer, {"messages": []})
    assert "role and content" in refusal(chat, tokenizer, {"messages": [{"content": "x"}]})
    picture = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    assert "as the parts of a message" in refusal(chat, tokenizer, {"messages": [picture, CHAT[1]]})
    robot = [CHAT[0], {"role": "robot", "content": "?"}, *CHAT[1:]]
    reason = refusal(chat, tokenizer, {"messages": robot})
    assert "chat template refuses" in reason and "found robot" in reason


def test_one_unfit_row_does_not_spoil_its_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    data = settings(format="messages")
    robot = {"messages": [{"role": "robot", "content": "?"}, *CHAT]}
    found = Template(data, tokenizer).render([{"messages": CHAT}, robot, {"messages": CHAT[:2]}])
    assert [type(item) for item in found] == [Rendered, RowError, Rendered]
    assert found[2] == rendered(data, tokenizer, {"messages": CHAT[:2]})


def test_all_demo_rows_agree_with_the_library(tokenizer: PreTrainedTokenizerBase) -> None:
    lines = (DEMO / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = Encoder(tokenizer).encode(Template(settings(), tokenizer).render(rows))
    turns = [
        [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        for row in rows
    ]
    expected = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    assert [item.ids.tolist() for item in found] == expected["input_ids"]
    masks = [(item.labels != -100).astype(int).tolist() for item in found]
    assert masks == expected["assistant_masks"]
