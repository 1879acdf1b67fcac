"""Text by vLLM (0.31) in this process instead of transformers: the same prompts and stops."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from workloads.engine.pretrained.files import ADAPTER_CONFIG, is_adapter
from workloads.errors import UserError
from workloads.json_files import read_json

# Of a machine's memory, where there is no GPU: nine tenths by itself, of what other programs need.
SHARE_OF_CPU = 0.4
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's kernels for adapters are made for


def check_vllm(name: str | None = None) -> None:
    """Raise UserError without vLLM; name: a model, which must not be an adapter alone."""
    if name is not None and is_adapter(Path(name).expanduser()):
        raise UserError(
            f"--engine vllm: expected a whole model, found an adapter in {name}; write one with "
            "tatara export RUN --merge --output FOLDER and name it by --model, or take --engine "
            "transformers"
        )
    if find_spec("vllm") is None:
        raise UserError(
            "--engine vllm: expected the package vllm, found none; use the image of grpo-h100, "
            "build that of llm-4090 with VLLM=yes, or take --engine transformers"
        )


def lora_rank(folder: Path) -> int:
    """The rank to start vLLM with for an adapter; raises UserError for an unsupported one."""
    own = read_json(folder / ADAPTER_CONFIG)
    fields = ("use_dora", "modules_to_save", "bias")
    odd = [field for field in fields if own.get(field) not in (None, False, "none", [])]
    rank = max([int(own["r"]), *(own.get("rank_pattern") or {}).values()])
    if odd or rank > RANKS[-1]:
        found = f"{odd[0]}={own[odd[0]]}" if odd else f"r={rank}"
        raise UserError(
            f"{folder}: expected an adapter that vLLM holds over its base (plain LoRA of rank "
            f"{RANKS[-1]} at most), found {found}; take a merged model: tatara export RUN --merge"
        )
    return next(offered for offered in RANKS if offered >= rank)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn vLLM's failures into UserError; vLLM prints the cause itself, from another process."""
    try:
        yield
    except Exception as error:  # vLLM raises its own exceptions and builtin ones
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder}: expected answers of vLLM, found: {found} Its own lines above say why; "
            "free memory, or take --engine transformers"
        ) from error


class VllmEngine:
    """A model's folder in vLLM; `generate` answers prompts in their order."""

    def __init__(self, folder: Path, dtype: torch.dtype, **options: Any) -> None:
        from vllm import LLM

        if not torch.cuda.is_available():
            options.setdefault("gpu_memory_utilization", SHARE_OF_CPU)
        self._folder = folder
        with _explained(folder):
            self._llm = LLM(model=str(folder), dtype=dtype, **options)
        self._penalty = self._llm.get_default_sampling_params().repetition_penalty

    def generate(
        self,
        prompts: Sequence[Mapping[str, Any]],
        max_new_tokens: int,
        *,
        greedy: bool = True,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 50,
        seed: int | None = None,
        stop_ids: Sequence[int] = (),
        adapter: Path | None = None,
    ) -> list[str]:
        """Continuations without special tokens, with the model's own repetition penalty.

        prompts: vLLM's, such as {"prompt_token_ids": ids}. stop_ids: tokens that end an answer
        beside the model's own. adapter: folder of the adapter to use (`enable_lora`).
        """
        from vllm import SamplingParams

        drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k or -1, "seed": seed}
        own: dict[str, Any] = {"temperature": 0.0} if greedy else drawn
        own |= {"repetition_penalty": self._penalty, "stop_token_ids": list(stop_ids)}
        rules = SamplingParams(max_tokens=max_new_tokens, **own)
        lora = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            lora = LoRARequest("adapter", 1, str(adapter))
        with _explained(self._folder):
            answers = self._llm.generate(list(prompts), rules, use_tqdm=False, lora_request=lora)
        return [answer.outputs[0].text for answer in answers]
