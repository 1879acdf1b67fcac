"""Builds data/demo/tiny-llava: config, tokenizer and processor of the model that demo-grpo trains.

    python -m workloads.grpo.tiny [FOLDER]

The folder holds no weights: a run starts from random ones (`model.random_init`). The tokenizer is
a byte-level BPE learnt from the demo's own few sentences, so that each word is one token, and the
four tags are tokens too. Building is deterministic: the same code gives the same bytes.

The size learns to count fastest from a few thousand images on one core: patches of 8
pixels, about an object wide, and weights drawn wider than usual. Patches of 12 or 16 pixels, or
the usual 0.02, learnt nothing in the same time.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.grpo.prompts import SUPERCLEVR, TRAINING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEMO = Path("data/demo/tiny-llava")
SPECIAL = PAD, BEGIN, END, USER, ASSISTANT, IMAGE = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<image>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
VOCABULARY = 384
SIDE, PATCH = 48, 8
TOKENS = (SIDE // PATCH) ** 2
CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|' ~ message['role'] ~ '|>' }}\n"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}\n"
    "{%- for part in message['content'] %}\n"
    "{%- if part['type'] == 'image' %}{{- '<image>' }}{%- else %}{{- part['text'] }}{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- endif %}\n"
    "{{- eos_token }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}\n"
)


def build(folder: Path) -> None:
    """Write config.json, generation_config.json and the processor's files into `folder`."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        # The floor of a scene is a light grey: what differs from it is an object or its shadow.
        image_processor=CLIPImageProcessorPil(
            size=square, crop_size=square, image_mean=[0.55] * 3, image_std=[0.12] * 3
        ),
        tokenizer=_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    _write_json(folder / "config.json", _config())
    _write_json(folder / "generation_config.json", {"do_sample": False, **_ids()})


def _tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(_sentences(), trainer)
    # Not special: decoding leaves them in the text, where the rewards look for them.
    inner.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _sentences() -> Iterator[str]:
    """Sentences to train the tokenizer; each often enough to make whole words tokens."""
    question = "How many different items are there in the image?"
    texts = [wording.replace("{question}", question) for wording in (TRAINING, SUPERCLEVR)]
    texts += [f"{tag} I count. {tag} {number} {tag}" for tag in TAGS for number in range(10)]
    for text in texts:
        for tag in TAGS:
            text = text.replace(tag, "\n")
        yield from [text] * 4


def _ids() -> dict[str, int]:
    return {
        "pad_token_id": SPECIAL.index(PAD),
        "bos_token_id": SPECIAL.index(BEGIN),
        "eos_token_id": SPECIAL.index(END),
    }


def _config() -> dict[str, Any]:
    common = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": SPECIAL.index(IMAGE),
        "image_seq_length": TOKENS,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "dtype": "float32",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            **common,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "initializer_range": 0.08,
            "tie_word_embeddings": False,
            **_ids(),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **common,
            "num_hidden_layers": 1,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": 64,
            "initializer_range": 0.08,
        },
        **_ids(),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO)
