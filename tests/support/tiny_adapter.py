"""A LoRA adapter with weights that say something, over the tiny Llama of `tiny_llama`."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tests.support.tiny_llama import make_model
from workloads.config.sections import Adapter
from workloads.engine.pretrained.adapter import add_adapter, save_adapters


def write_adapter(folder: Path, base: Path, seed: int, **changes: Any) -> Path:
    """An adapter in peft's layout that names `base` as its base; changes: of `Adapter`.

    Where there is no such base, it has the shape of `tiny_llama`'s.
    """
    model: Any = LlamaForCausalLM.from_pretrained(base) if base.is_dir() else make_model()
    torch.manual_seed(seed)
    wish = Adapter.model_validate({"method": "lora", "r": 4, "alpha": 32, **changes})
    model = add_adapter(model, wish)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += torch.randn_like(weight)
    save_adapters(model, folder)
    own = json.loads((folder / "adapter_config.json").read_text())
    own["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(own))
    return folder
