"""GSM8K: prompts, and scores of answers.

Scores follow three references to the letter, oddities included, so that figures compare:
lm-evaluation-harness 0.4.13 tasks `gsm8k` (version 3.0) and `gsm8k_cot_llama` (version 4.0, the
one behind Llama 3's published figures), and verl's rule reward. Stop strings are not part of a
score: cut an output with `cut_at_stop_string` first, as the harness does.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random

INVALID = "[invalid]"  # the harness's value where nothing was found
STOP_STRINGS = ("Question:", "</s>", "<|im_end|>")
CHAT_SUFFIX = 'Let\'s think step by step and output the final answer after "####".'

_MARKED = re.compile(r"#### (-?[0-9.,]+)")  # exactly one space
_LAST_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FINAL_ANSWER = re.compile(r"The final answer is ((-?[$0-9.,]{2,})|(-?[0-9]+))")
_VERL_NUMBER = re.compile(r"-?[0-9.,]+")
_VERL_TAIL = 300  # characters at the end that verl reads
# Removed from both sides before they are compared, in this order.
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))


def score_gsm8k(output: str, answer: str) -> dict[str, bool]:
    """Whether `output` is right by the harness's task `gsm8k`: `strict` and `flexible`.

    `answer` is the dataset's full answer text, `…#### 18`; an answer text that ends in white
    space can never be matched, there as here.
    """
    return _exact_matches(extract_gsm8k(output), answer)


def extract_gsm8k(output: str) -> dict[str, str]:
    """What task `gsm8k` reads: `strict` the first `#### number`, `flexible` the last number."""
    marked = _MARKED.search(output)
    return {"strict": marked[1] if marked else INVALID, "flexible": _last_number(output)}


def score_gsm8k_cot_llama(output: str, answer: str) -> dict[str, bool]:
    """Whether `output` is right by the harness's task `gsm8k_cot_llama`; `answer` in full."""
    return _exact_matches(extract_gsm8k_cot_llama(output), cot_llama_target(answer))


def extract_gsm8k_cot_llama(output: str) -> dict[str, str]:
    """What task `gsm8k_cot_llama` reads: the last `The final answer is N`, the last number."""
    stated = _FINAL_ANSWER.findall(output)
    return {"strict": stated[-1][0] if stated else INVALID, "flexible": _last_number(output)}


def cot_llama_target(answer: str) -> str:
    """The right answer as `gsm8k_cot_llama` takes it from the dataset's answer text."""
    return answer.split("####")[-1].strip()


def score_verl(output: str, answer: str) -> dict[str, float | None]:
    """verl's reward, 1.0 or 0.0, by its `strict` and `flexible` way; `answer` in full.

    None where the answer text has no `#### number`: verl's preparation refuses such a row.
    """
    gold = verl_gold(answer)
    found = extract_verl(output)
    return {way: None if gold is None else float(text == gold) for way, text in found.items()}


def extract_verl(output: str) -> dict[str, str | None]:
    """What verl reads in the last 300 characters: the last `#### number`, the last number.

    A lone dot is no number to `flexible` unless there is nothing else.
    """
    tail = output[-_VERL_TAIL:]
    marked = _MARKED.findall(tail)
    numbers = _VERL_NUMBER.findall(tail)
    usable = [number for number in numbers if number != "."]
    return {
        "strict": marked[-1].replace(",", "") if marked else None,
        "flexible": next(reversed(usable or numbers), None),
    }


def verl_gold(answer: str) -> str | None:
    """The right answer as verl takes it from the answer text: the first `#### number`."""
    marked = _MARKED.search(answer)
    return marked[1].replace(",", "") if marked else None


def few_shot_prompt(examples: Sequence[Mapping[str, str]], question: str) -> str:
    """The harness's prompt of `gsm8k`: solved `examples` (`question`, `answer`), then `question`.

    The harness puts 5 examples of the train split and draws them again for every question; see
    `few_shot_examples`.
    """
    solved = [f"{_ask(row['question'])} {row['answer']}\n\n" for row in examples]
    return "".join(solved) + _ask(question)


def few_shot_examples(
    train_rows: int, questions: int, shots: int = 5, seed: int = 1234
) -> list[list[int]]:
    """For each of the first `questions` test rows, the train rows the harness shows before it.

    The task names no sampler, so the harness's default one draws at random without replacement,
    one generator (seed 1234) through the test rows in their order. Drawing for all of them at
    once keeps a resumed evaluation on the same examples.
    """
    random = Random(seed)
    return [random.sample(range(train_rows), shots) for _ in range(questions)]


def chat_prompt(question: str) -> list[dict[str, str]]:
    """The question in verl's form: one user turn that asks for the answer after `####`."""
    return [{"role": "user", "content": f"{question} {CHAT_SUFFIX}"}]


def cut_at_stop_string(output: str, stop_strings: Sequence[str] = STOP_STRINGS) -> str:
    """`output` up to the first stop string in it."""
    for stop in stop_strings:
        output = output.split(stop, 1)[0]
    return output


def _ask(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _last_number(output: str) -> str:
    last = INVALID
    for match in _LAST_NUMBER.finditer(output):
        last = match[0]
    return last


def _exact_matches(extracted: dict[str, str], target: str) -> dict[str, bool]:
    wanted = _comparable(target)
    return {way: _comparable(text) == wanted for way, text in extracted.items()}


def _comparable(text: str) -> str:
    for ignored in _IGNORED:
        # The harness keeps texts in numpy arrays, which drop zero characters at the end.
        text = ignored.sub("", text).rstrip("\0")
    return text.lower()
