"""What of the images' GPU layers can be held together without a GPU, by the packages' metadata."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.unit

IMAGES = Path(__file__).resolve().parents[2] / "images"
HELD = {"torch": "2.13.0", "torchvision": "0.28.0", "torchaudio": "2.11.0"}
TORCH = ["cuda-toolkit[cublas]==13.0.3; platform_system == 'Linux'", "triton==3.6.0"]


@pytest.fixture(scope="module")
def layers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", IMAGES / "check_layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(*requires: str, version: str = "1", file: str = "a-1-py3-none-any.whl") -> dict[str, Any]:
    return {
        "metadata": {"name": "a", "version": version, "requires_dist": list(requires)},
        "download_info": {"url": f"https://index.example/{file}"},
    }


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        ("torch", entry(*TORCH), None),
        ("vllm", entry("torch==2.13.0", "torchvision==0.28.0", "numpy"), None),
        (
            "vllm",
            entry("torch==2.12.1"),
            "expected vllm for torch 2.13.0, found it for torch==2.12.1",
        ),
        ("vllm", entry("torch (==2.12.1)"), "expected vllm for torch 2.13.0, found it for torch"),
        (
            "vllm",
            entry("torchaudio==2.10.0"),
            "vllm for torchaudio 2.11.0, found it for torchaudio==2.10",
        ),
        ("vllm", entry("torch==2.12.1; extra == 'old'"), None),
        ("vllm", entry("torch==2.12.1; platform_machine == 's390x'"), None),
        ("vllm", entry("torch>=2.14"), "expected vllm for torch 2.13.0, found it for torch>=2.14"),
        ("vllm", entry("Torch_Audio<3"), None),
        ("torch", entry("nvidia-cublas-cu12==12.8.4"), "expected torch for CUDA 13, found it"),
        ("torch", entry("cuda-toolkit[cublas]==12.9.1"), "expected torch for CUDA 13, found it"),
        ("flash-attn", entry(file="flash_attn-2.8.3%2Bcu13torch2.13cxx11abiTRUE-cp311.whl"), None),
        (
            "flash-attn",
            entry(file="flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp311.whl"),
            "expected flash-attn for torch 2.13.0, found flash_attn-2.8.3",
        ),
    ],
)
def test_a_package_built_against_another_torch_is_named(
    layers: ModuleType, name: str, found: dict[str, Any], said: str | None
) -> None:
    wrong = layers.unfit({name: found}, HELD)
    assert len(wrong) == bool(said) and (said is None or said in wrong[0])


def test_libraries_for_another_cuda_are_named(layers: ModuleType) -> None:
    locked = {"nvidia-cudnn-cu12": "9", "cuda-bindings": "12.9.0", "nvidia-nvvm": "13.5.37",
              "nvidia-cutlass-dsl-libs-cu12": "4.7.1"}  # fmt: skip
    assert layers.other_cuda(locked) == [
        "expected packages for CUDA 13, found nvidia-cudnn-cu12",
        "expected cuda-bindings for CUDA 13, found 12.9.0",
    ]


def test_flash_attention_is_compiled_against_the_torch_that_is_there(layers: ModuleType) -> None:
    apart = 'RUN pip install "flash-attn==$FLASH_ATTN"'
    (line,) = layers.built_apart(apart)
    assert "--no-build-isolation, found" in line
    assert layers.built_apart("RUN pip install torch")


def test_the_locks_and_the_dockerfile_hold_together(layers: ModuleType) -> None:
    locked = layers.pins(IMAGES / "grpo-h100" / "requirements-cuda.lock")
    assert locked and layers.other_cuda(locked) == []
    assert layers.built_apart((IMAGES / "Dockerfile").read_text(encoding="utf-8")) == []
    assert set(layers.BUILT_AGAINST_TORCH) <= set(
        layers.pins(IMAGES / "grpo-h100" / "requirements.lock")
    )


def test_every_download_of_a_build_has_the_settings_of_its_network() -> None:
    """O-A11: proxies, indices and authorities, which stand in secrets that no layer keeps."""
    text = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\n\s*#[^\n]*", "", text).replace("\\\n", " ")
    steps = [" ".join(line.split()) for line in joined.splitlines() if line.startswith("RUN ")]
    loading = [step for step in steps if re.search("apt-get install|pip install", step)]
    # The project itself, which needs nothing else, comes from here.
    loading = [step for step in loading if "--no-cache-dir -e ." not in step]
    settings = (
        "--mount=type=secret,id=checkout --mount=type=secret,id=ca "
        "{ [ ! -f /run/secrets/checkout ] || . /run/secrets/checkout; } && "
    )
    assert len(loading) >= 6
    for step in loading:
        mounts, known, commands = step.partition(settings)
        assert known and "install" not in mounts and "install" in commands, step


def test_the_command_says_what_was_found(
    layers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 where one does not fit; flash-attention has no wheels on the index."""

    text = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
    own = text.partition("ARG TORCH_VERSION=")[2].split()[0]
    built = own

    def metadata(wanted: list[str]) -> dict[str, Any]:
        if wanted == ["flash-attn"]:
            return {}
        names = [word.partition("==")[0] for word in wanted]
        assert names == ["torch", "vllm", "torchvision", "torchaudio"]
        return {"torch": entry(*TORCH), "vllm": entry(f"torch=={built}")}

    monkeypatch.setattr(layers, "metadata", metadata)
    assert layers.main() == 0
    assert f"flash-attn: source alone, compiled against torch {own}" in capsys.readouterr().out
    built = "1.0"
    assert layers.main() == 1
    assert "found it for torch==1.0" in capsys.readouterr().err
