"""A tiny PaliGemma's files, without weights."""

import json
import shutil
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[2] / "data/demo/tiny-kosmos2"
IMAGE_TOKEN = 1023
CONFIG = {
    "model_type": "paligemma",
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "image_token_index": IMAGE_TOKEN,
    "projection_dim": 48,
    "hidden_size": 48,
    "text_config": {
        "model_type": "gemma",
        "vocab_size": 1024,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_image_tokens": 16,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 48,
        "vision_use_head": False,
    },
}


def tiny_paligemma(folder: Path) -> Path:
    """config.json, and a tokenizer of as many words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder
