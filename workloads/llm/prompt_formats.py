"""Chat templates by name, for models that were trained on a text format without a template.

Of each: the text before everything, before a question, an input, an answer. A system turn takes the
place of the first. Every blank and line break is one that the model was trained on.
"""

from dataclasses import dataclass

_TASK_JA = (
    "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。"
    "要求を適切に満たす応答を書きなさい。"
)
_TASK_LLM_JP = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
_TASK_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class PromptForm:
    """The marks of a text format; `behind` closes an answer before another turn."""

    head: str
    question: str
    answer: str
    given: str = ""
    behind: str = "{{ eos_token }}"
    newline: str = ""

    def template(self) -> str:
        """The format as a chat template; `apply` puts the start token before it."""
        words = "{{ m['content'] }}"
        if self.newline:
            words = "{{ m['content'] | trim | replace('\\n', '" + self.newline + "') }}"
        more = ""
        if self.given:
            more = "{% if m['input'] %}" + _kept(self.given) + "{{ m['input'] }}{% endif %}"
        return (
            "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
            + "{{ messages[0]['content'] }}"
            + _kept(self.newline)
            + "{% else %}{% set rest = messages %}"
            + _kept(self.head)
            + "{% endif %}{% for m in rest %}{% if m['role'] == 'user' %}"
            + _kept(self.question)
            + words
            + more
            + "{% elif m['role'] == 'assistant' %}"
            + _kept(self.answer)
            + words
            + "{% if loop.last %}{{ eos_token }}{% else %}"
            + self.behind
            + "{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}"
            + _kept(self.answer)
            + "{% endif %}"
        )


def _kept(text: str) -> str:
    """Text as an expression: a line break after a block would be removed."""
    escaped = text.replace("\n", "\\n")
    return "{{ '" + escaped + "' }}" if text else ""


FORMS = {
    "stablelm-instruct-ja": PromptForm(
        _TASK_JA, "\n\n### 指示: \n", "\n\n### 応答: \n", "\n\n### 入力: \n"
    ),
    "rinna-instruct": PromptForm("", "ユーザー: ", "<NL>システム: ", behind="<NL>", newline="<NL>"),
    "line-instruct": PromptForm("", "ユーザー: ", "\nシステム: ", behind="{{ eos_token + '\\n' }}"),
    "llm-jp-instruct": PromptForm(
        _TASK_LLM_JP, "\n\n### 指示:\n", "\n\n### 応答:\n", "\n\n### 入力:\n"
    ),
    "alpaca": PromptForm(
        _TASK_ALPACA, "\n\n### Instruction:\n", "\n\n### Response:\n", "\n\n### Input:\n"
    ),
}
