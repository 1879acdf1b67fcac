"""A Modelfile says to Ollama what the chat template says to transformers."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_models import chat_tokenizer, write_chat_model
from workloads.llm.modelfile import go_template, write_modelfile

pytestmark = pytest.mark.unit


def filled(template: str, prompt: str, system: str = "") -> str:
    """What Ollama makes of a template for one question, up to where the answer begins."""

    def chosen(match: re.Match[str]) -> str:
        yes, _, no = match[1].partition("{{ else }}")
        return yes if system else no

    text = re.sub(r"\{\{ if \.System \}\}(.*?)\{\{ end \}\}", chosen, template, flags=re.S)
    text = text.partition("{{ .Response }}")[0]
    return text.replace("{{ .System }}", system).replace("{{ .Prompt }}", prompt)


@pytest.mark.parametrize("family", ["chatml", "three", "ja", "turns", "tools"])
def test_the_prompt_is_the_chat_templates(family: str) -> None:
    tokenizer: Any = chat_tokenizer(family)
    template = go_template(tokenizer)
    turns = [{"role": "user", "content": "犬?"}]
    asked = {"tokenize": False, "add_generation_prompt": True}
    expected = tokenizer.apply_chat_template(turns, **asked).removeprefix(tokenizer.bos_token or "")
    assert filled(template, "犬?") == expected
    if family != "turns":  # which takes no system turn
        turns = [{"role": "system", "content": "Be short."}, *turns]
        expected = tokenizer.apply_chat_template(turns, **asked)
        assert filled(template, "犬?", "Be short.") == expected


def test_the_ends_are_those_of_the_export(tmp_path: Path) -> None:
    """L-F1"""
    folder = write_chat_model(tmp_path / "model", "base-chatml")
    text = write_modelfile(folder).read_text()
    assert text.startswith("FROM .\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"' in text and 'PARAMETER stop "<|endoftext|>"' in text
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    assert write_modelfile(folder).read_text().startswith("FROM owner/base\nADAPTER .\n")
