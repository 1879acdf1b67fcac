"""What of vLLM our code calls, answered by transformers: prompts and ends are what is tested."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workloads.engine.pretrained.adapter import load_adapter


class FakeLLM:
    """vLLM's `LLM`, for greedy answers to prompts in tokens."""

    def __init__(self, model: str, dtype: Any, tokenizer: str, **options: Any) -> None:
        self._folder, self._tokenizer = model, AutoTokenizer.from_pretrained(tokenizer)
        self.options = options

    def get_default_sampling_params(self) -> Any:
        return SimpleNamespace(repetition_penalty=1.0)

    def generate(
        self, prompts: Any, rules: Any, use_tqdm: bool, lora_request: Any = None
    ) -> list[Any]:
        assert rules.temperature == 0.0
        model: Any = AutoModelForCausalLM.from_pretrained(self._folder)
        if lora_request is not None:
            assert self.options["enable_lora"]
            model = load_adapter(model, Path(lora_request.path)).eval()
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=rules.max_tokens,
                do_sample=False,
                eos_token_id=rules.stop_token_ids,
            )
            text = self._tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            found.append(SimpleNamespace(outputs=[SimpleNamespace(text=text)]))
        return found


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import vllm` find the fake."""
    vllm: Any = ModuleType("vllm")
    vllm.__spec__ = SimpleNamespace()
    vllm.LLM, vllm.SamplingParams = FakeLLM, SimpleNamespace
    request: Any = ModuleType("vllm.lora.request")
    request.LoRARequest = lambda name, number, path: SimpleNamespace(path=path)
    named = {"vllm": vllm, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": request}
    for name, module in named.items():
        monkeypatch.setitem(sys.modules, name, module)
