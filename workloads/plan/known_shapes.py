"""Where a model's shape is found: its folder, the hub's cache, a small table, or the hub itself."""

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workloads.config.sections import Model
from workloads.errors import UserError
from workloads.plan.shapes import ModelShape, from_fields

# Seconds that the hub gets for one small file; memory is only predicted, never worth a wait.
_PATIENCE = 5.0
_LARGEST = 1 << 20


def _decoder(family: str, sizes: tuple[int, ...], **more: Any) -> Mapping[str, Any]:
    """config.json's fields; sizes: hidden, layers, heads, kv heads, intermediate, vocabulary."""
    names = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "intermediate_size", "vocab_size"),
    )
    return {"model_type": family, **dict(zip(names, sizes, strict=True)), **more}


def _qwen_vl(sizes: tuple[int, ...], tied: bool) -> Mapping[str, Any]:
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": sizes[0]}
    return _decoder("qwen2_5_vl", sizes, tie_word_embeddings=tied, vision_config=vision)


def _qwen2_vl(sizes: tuple[int, ...], tied: bool) -> Mapping[str, Any]:
    vision = {"embed_dim": 1280, "hidden_size": sizes[0]}
    return _decoder("qwen2_vl", sizes, tie_word_embeddings=tied, vision_config=vision)


_LLAMA_1B = _decoder("llama", (2048, 16, 32, 8, 8192, 128256), tie_word_embeddings=True)
_LLAMA_3B = _decoder("llama", (3072, 28, 24, 8, 8192, 128256), tie_word_embeddings=True)
_LLAMA_8B = _decoder("llama", (4096, 32, 32, 8, 14336, 128256))
_STABLELM_3B = _decoder("stablelm", (2560, 32, 32, 32, 6912, 50304))
_NEOX_3B = _decoder("gpt_neox", (2816, 36, 22, 22, 11264, 32000))
_QWEN_05B = _decoder("qwen2", (896, 24, 14, 2, 4864, 151936), tie_word_embeddings=True)
_QWEN_32B = _decoder("qwen2", (5120, 64, 40, 8, 27648, 152064))
_QWEN_VL_3B = _qwen_vl((2048, 36, 16, 2, 11008, 151936), tied=True)
_QWEN_VL_7B = _qwen_vl((3584, 28, 28, 4, 18944, 152064), tied=False)
_QWEN2_VL_2B = _qwen2_vl((1536, 28, 12, 2, 8960, 151936), tied=True)
_QWEN2_VL_7B = _qwen2_vl((3584, 28, 28, 4, 18944, 152064), tied=False)
_GEMMA_2B = _decoder("gemma2", (2304, 26, 8, 4, 9216, 256000), head_dim=256)
_OPENVLA_7B = {"model_type": "openvla", "text_config": {"vocab_size": 32064}}

# Repository names without their owner, so that mirrors are known too.
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": _LLAMA_1B,
    "llama-3.2-1b-instruct": _LLAMA_1B,
    "llama-3.2-3b": _LLAMA_3B,
    "llama-3.2-3b-instruct": _LLAMA_3B,
    "meta-llama-3-8b": _LLAMA_8B,
    "meta-llama-3-8b-instruct": _LLAMA_8B,
    "llama-3.1-8b": _LLAMA_8B,
    "llama-3.1-8b-instruct": _LLAMA_8B,
    "llama-3-elyza-jp-8b": _LLAMA_8B,
    "japanese-stablelm-3b-4e1t-base": _STABLELM_3B,
    "japanese-stablelm-3b-4e1t-instruct": _STABLELM_3B,
    "japanese-gpt-neox-3.6b": _NEOX_3B,
    "japanese-gpt-neox-3.6b-instruction-sft": _NEOX_3B,
    "japanese-gpt-neox-3.6b-instruction-sft-v2": _NEOX_3B,
    "japanese-gpt-neox-3.6b-instruction-ppo": _NEOX_3B,
    "qwen2.5-0.5b": _QWEN_05B,
    "qwen2.5-0.5b-instruct": _QWEN_05B,
    "qwen2.5-32b": _QWEN_32B,
    "qwen2.5-32b-instruct": _QWEN_32B,
    "deepseek-r1-distill-qwen-32b": _QWEN_32B,
    "deepseek-r1-distill-qwen-32b-japanese": _QWEN_32B,
    "qwen2.5-vl-3b-instruct": _QWEN_VL_3B,
    "qwen2.5-vl-7b-instruct": _QWEN_VL_7B,
    "qwen2-vl-2b-instruct": _QWEN2_VL_2B,
    "qwen2-vl-7b-instruct": _QWEN2_VL_7B,
    "gemma-2-2b": _GEMMA_2B,
    "gemma-2-2b-it": _GEMMA_2B,
    "openvla-7b": _OPENVLA_7B,
}


class UnknownShape(UserError):
    """The shape cannot be found here and now; the text says why and what to do."""


def shape_of(model: Model, env: Mapping[str, str]) -> tuple[ModelShape, str]:
    """The model's shape and where it was found; UnknownShape where it is nowhere.

    Looked for in this order: a local folder, the hub's cache, the table above, the hub (config.json
    only, at most 5 seconds, not where HF_HUB_OFFLINE is set).
    """
    folder = Path(model.name)
    if folder.is_dir():
        return _from_file(folder / "config.json"), f"{model.name}/config.json"
    cached = _cached(model, env)
    if cached is not None:
        return _from_file(cached), "config.json in the hub's cache"
    known = _KNOWN.get(model.name.rsplit("/", 1)[-1].lower())
    if known is not None:
        return from_fields(known), "table of known models"
    return _parsed(_download(model, env), f"config.json of {model.name}"), "config.json on the hub"


def _from_file(path: Path) -> ModelShape:
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UnknownShape(
            f"expected a config.json at {path}, found none that can be read ({error.strerror}); "
            "point model.name at a folder with one, or at a repository of the hub"
        ) from None


def _parsed(content: bytes, name: str) -> ModelShape:
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise UserError(f"expected an object, found {type(fields).__name__}")
        return from_fields(fields)
    except (ValueError, UserError) as error:
        raise UnknownShape(f"{name}: {error}; memory can be predicted for these only") from None


def _cached(model: Model, env: Mapping[str, str]) -> Path | None:
    """config.json in the hub's cache, read by its public layout: loading the library is slow."""
    home = env.get("HF_HOME") or os.path.join(
        env.get("XDG_CACHE_HOME") or os.path.join(env.get("HOME", "~"), ".cache"), "huggingface"
    )
    cache = Path(env.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    repository = cache / f"models--{model.name.replace('/', '--')}"
    revision = model.revision or "main"
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    path = repository / "snapshots" / commit / "config.json"
    return path if path.is_file() else None


def _download(model: Model, env: Mapping[str, str]) -> bytes:
    what = f"the shape of {model.name!r} is not known here"
    if env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UnknownShape(
            f"{what} and HF_HUB_OFFLINE is set; download the model first, or unset it"
        )
    if model.name.count("/") != 1:
        raise UnknownShape(
            f"{what}: no such folder, and no name of a repository (owner/name); correct model.name"
        )
    endpoint = (env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{model.name}/resolve/{model.revision or 'main'}/config.json"
    answer: queue.Queue[bytes | Exception] = queue.Queue(1)
    # A daemon thread, because no timeout of urllib's bounds a slow name lookup or a slow trickle.
    threading.Thread(target=_fetch, args=(url, env.get("HF_TOKEN"), answer), daemon=True).start()
    try:
        found = answer.get(timeout=_PATIENCE)
    except queue.Empty:
        found = TimeoutError(f"no answer in {_PATIENCE:g} s")
    if isinstance(found, bytes):
        return found
    raise UnknownShape(f"{what} and {url} gave: {found}; {_mend(found)}")


def _fetch(url: str, token: str | None, answer: "queue.Queue[bytes | Exception]") -> None:
    try:
        request = urllib.request.Request(url)
        if token:
            # Not sent on to another host where the hub redirects.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_PATIENCE) as reply:
            answer.put(reply.read(_LARGEST))
    except (OSError, ValueError, http.client.HTTPException) as error:
        answer.put(error)


def _mend(error: Exception) -> str:
    status = error.code if isinstance(error, urllib.error.HTTPError) else None
    if status in (401, 403):
        return "set HF_TOKEN to a token that may read it, and accept its licence on the hub"
    if status == 404:
        return "correct model.name or model.revision"
    return "check the network, or set model.name to a local folder"
