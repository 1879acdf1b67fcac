"""What every test with the real vLLM on a CPU needs: its environment."""

import os
from pathlib import Path


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
