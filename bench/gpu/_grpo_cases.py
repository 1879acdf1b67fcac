"""What bench/gpu/grpo.py asks: models of real shape, rows with a picture each, completions that
are given. Needs no GPU.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench._pair import ROOT
from workloads.config.merge import resolve
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.images import ImageFile
from workloads.grpo.data.rows import Example
from workloads.plan.estimate import Breakdown, estimate

OURS, TRL, WHOLE = "ours", "TRL", "whole logits"
SIDES = (OURS, TRL, WHOLE)
TINY = ROOT / "data" / "demo" / "tiny-llava"
PROFILE = ROOT / "profiles" / "grpo-h100.yaml"
# So small that weights stay what they are: every step has the same gradients whenever it comes.
RATE = 1e-12
GENERATIONS = 4
SEVEN_B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
}
TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
}
VISION = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """`rows` completions a step, `micro` at a time; each with its prompt has `length` tokens.

    picture: (width, height); Qwen2.5-VL makes 512 tokens of 896 x 448.
    """

    name: str
    title: str
    rows: int
    micro: int
    length: int
    picture: tuple[int, int]
    tiny: bool = False
    goal: float = 1.4
    peak_goal: float = 0.7

    @property
    def prompts(self) -> int:
        """Different prompts of a step; there are no others, so that every step has all of them."""
        return self.rows // GENERATIONS

    def config(self, folder: Path, steps: int) -> GrpoConfig:
        """The profile that ours trains by: grpo-h100, without what generates and saves."""
        words = {
            "model.name": str(folder / "model"),
            "model.random_init": True,
            "adapter.dropout": 0.0,
            "data.source": str(folder),
            "rewards": ["bench.gpu._grpo_sides:reward"],
            "grpo.objective": "trl",
            "grpo.num_generations": GENERATIONS,
            # A completion fills what its prompt leaves; to the plan only the sum matters.
            "grpo.max_prompt_length": self.length // 2,
            "grpo.max_completion_length": self.length - self.length // 2,
            "grpo.max_pixels": None if self.tiny else 401408,
            "generation.engine": "transformers",
            "optim.learning_rate": RATE,
            "train.max_steps": steps,
            "train.per_device_batch_size": self.micro,
            "train.global_batch_size": self.rows,
            "train.precision": "fp32" if self.tiny else "bf16",
            "train.workers": 0,
            "train.log_every": 1,
            "checkpoints.every_steps": None,
            "evaluation.rows": 0,
            "rollouts.per_step": 0,
            "tracking.tensorboard": False,
        }
        config, _ = resolve(PROFILE, {}, words)
        assert isinstance(config, GrpoConfig)
        return config

    def plan(self) -> Breakdown:
        """What `tatara plan` says of it, from the model's config alone."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_config(self, folder / "model")
            return estimate(self.config(folder, 1), gpus=1, env={})


CASES = {
    case.name: case
    for case in (
        Case(
            "lora7b",
            "Qwen2.5-VL-7B, LoRA r64 on q, k, v and o, 64 completions of 900 tokens a step",
            rows=64,
            micro=8,
            length=900,
            picture=(896, 448),
        ),
    )
}


@contextlib.contextmanager
def bench_folder(case: Case) -> Iterator[Path]:
    """`model/`, as a profile names one, and a picture for each prompt."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_config(case, folder / "model")
        if not case.tiny:
            _write_processor(folder / "model")
        for number in range(case.prompts):
            chance = np.random.default_rng(number)
            width, height = case.picture
            coarse = chance.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(case.picture).save(folder / f"{number}.png")
        yield folder


def examples_of(case: Case, folder: Path) -> list[Example]:
    """A question about each picture; all have as many tokens."""
    return [
        Example(f"rows:{n}", f"How many items in picture {n:02d}?", "3", (ImageFile(place),))
        for n in range(case.prompts)
        for place in [folder / f"{n}.png"]
    ]


def _tokenizer() -> Any:
    """A small one: which words are random does not matter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "demo" / "tiny-llama")
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION)})
    return tokenizer


def _write_config(case: Case, folder: Path) -> None:
    """config.json, of the 7B shape or of the tiny model with all that belongs to it."""
    from transformers import Qwen2_5_VLConfig

    if case.tiny:
        shutil.copytree(TINY, folder)
        return
    tokenizer = _tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(token) for token in VISION]
    names = ("vision_start_token_id", "image_token_id", "video_token_id", "vision_end_token_id")
    Qwen2_5_VLConfig(
        text_config={**SEVEN_B, "pad_token_id": tokenizer.pad_token_id},
        vision_config=TOWER,
        tie_word_embeddings=False,
        **dict(zip(names, ids, strict=True)),
    ).save_pretrained(folder)


def _write_processor(folder: Path) -> None:
    """Needs torchvision, as every processor of this family does."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
