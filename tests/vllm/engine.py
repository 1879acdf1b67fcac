"""What every test with the real vLLM on a CPU needs: its environment, and models it can serve."""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.harness import ROOT


def environment(outputs: Path) -> dict[str, str]:
    """vLLM in the trainer's own process, with a GiB for its cache, on the CPU."""
    own = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TATARA_OUTPUTS": str(outputs),
    }
    return {**os.environ, **own}


def write_seeing(folder: Path) -> Path:
    """The demo's tiny LLaVA with random weights: its heads are as wide as vLLM's kernels need."""
    shutil.copytree(ROOT / "data" / "demo" / "tiny-llava", folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    return folder
