"""Assert what an image holds, at the end of its build: `check_image.py TARGET LOCK`.

Every package of the lock in exactly that version, nothing that contradicts what a package asks for,
and an import of each library that the target's workload uses.
"""

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

COMMON = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors.torch",
    "huggingface_hub",
    "pyarrow",
    "PIL",
    "matplotlib",
    "wandb",
    "torch.utils.tensorboard",
    "pydantic",
    "yaml",
    "rich",
    "textual",
    "psutil",
    "pynvml",
)
IMPORTS = {
    "demo": ("math_verify", "google_crc32c"),
    "llm-4090": ("bitsandbytes", "kernels", "fastapi", "openai", "uvicorn"),
    "vla": ("bitsandbytes", "kernels", "av", "google_crc32c"),
    "grpo-h100": ("bitsandbytes", "kernels", "math_verify"),
    "calvin": ("pybullet", "hydra", "omegaconf", "gym", "cv2", "scipy", "quaternion", "git"),
}
WITHOUT_TORCH = ("calvin",)
# These import Triton or a CUDA library at once, which the CPU build of torch does not bring.
CUDA_IMPORTS = {
    "llm-4090": ("triton", "liger_kernel.transformers"),
    "vla": ("triton", "liger_kernel.transformers"),
    "grpo-h100": ("triton", "liger_kernel.transformers", "torchvision", "vllm"),
}
# Built against CUDA's libraries; the build for CPUs takes them out again.
CUDA_PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def main(target: str, lock: str) -> int:
    """Print one line for each thing that is wrong; 1 if there is any."""
    trains = target not in WITHOUT_TORCH
    torch = importlib.import_module("torch") if trains else None
    has_cuda = torch is not None and torch.version.cuda is not None
    names = [*(COMMON if trains else ()), *IMPORTS[target]]
    names += CUDA_IMPORTS.get(target, ()) if has_cuda else ()
    left_out = () if has_cuda else CUDA_PACKAGES
    wrong = [*_versions(Path(lock), left_out), *_contradictions(has_cuda), *_failed_imports(names)]
    for line in wrong:
        print(f"image {target}: {line}", file=sys.stderr)
    if not wrong and torch is None:
        print(f"image {target}: {len(names)} imports work")
    elif not wrong and torch is not None:
        variant = f"CUDA {torch.version.cuda}" if has_cuda else "CPU"
        print(f"image {target}: torch {torch.__version__} ({variant}), {len(names)} imports work")
        if not has_cuda:
            print(f"not tried without CUDA: {', '.join(CUDA_IMPORTS.get(target, ())) or 'nothing'}")
    return 1 if wrong else 0


def _versions(lock: Path, left_out: tuple[str, ...]) -> list[str]:
    """Packages that are not there in the version the lock names."""
    wrong = []
    for name, wanted in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(), re.MULTILINE):
        if name in left_out:
            continue
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        if found != wanted:
            wrong.append(f"expected {name} {wanted}, found {found}")
    return wrong


# What the CPU build of torch leaves out on purpose, and packages ask for.
_CUDA_PACKAGES = re.compile(r"requires (nvidia-|cuda-|triton|torchvision|torchaudio|torchcodec)")


def _contradictions(has_cuda: bool) -> list[str]:
    words = [sys.executable, "-m", "pip", "check"]
    lines = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
    lines = [line for line in lines if line != "No broken requirements found."]
    return [line for line in lines if has_cuda or not _CUDA_PACKAGES.search(line)]


def _failed_imports(names: list[str]) -> list[str]:
    wrong = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken package raises is what is to be told
            wrong.append(f"import {name}: {type(error).__name__}: {error}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
