"""Files of tiny vision-language models, without weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENIZER = Path(__file__).resolve().parents[2] / "data/demo/tiny-kosmos2"
IMAGE_TOKEN = 1023
PALIGEMMA: dict[str, Any] = {
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
# A small window and a low cap, so that both change what is read.
PALIGEMMA2: dict[str, Any] = {
    **PALIGEMMA,
    "text_config": {
        **PALIGEMMA["text_config"],
        "model_type": "gemma2",
        "query_pre_attn_scalar": 16,
        "sliding_window": 12,
        "attn_logit_softcapping": 0.5,
    },
}
# As published: the language model's fields stand beside the others. An image is 16 tokens.
VISION_START, VISION_END = 1020, 1021
QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 1022,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": True,
    "vocab_size": 1024,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 28,
        "window_size": 112,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
    },
}
SMOLVLM: dict[str, Any] = {
    "model_type": "smolvlm",
    "architectures": ["SmolVLMForConditionalGeneration"],
    "image_token_id": IMAGE_TOKEN,
    "scale_factor": 2,
    "pad_token_id": 1,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 1,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    },
}


def backbone_folder(folder: Path, config: Mapping[str, Any]) -> Path:
    """config.json, and a tokenizer of as many words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder
