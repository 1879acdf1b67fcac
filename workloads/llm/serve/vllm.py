"""`vllm serve` (0.31) for a base and any number of adapters, with the prompts of training."""

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workloads.device import gpu_count
from workloads.engine.generate.guard import TOKEN, ServeGuard
from workloads.engine.generate.vllm import SHARE_OF_CPU, lora_rank
from workloads.engine.pretrained.adapter import check_same_base
from workloads.engine.pretrained.chat import with_stops
from workloads.llm.config import LlmData
from workloads.llm.model import find_for_use
from workloads.llm.serve.template import served_template
from workloads.llm.speaker import data_of

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# With these, clients could load their own adapters or change the server.
_CLOSED = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE")


@dataclass(frozen=True)
class Served:
    """The served model: its folder, and adapters over it by name.

    files: the folder with tokenizer and template for prompts, and with generation settings for stop
    tokens; None for a model of images, which has its own.
    """

    name: str
    base: Path
    files: Path | None
    adapters: Mapping[str, Path]


def prepare(
    name: str, called: str, adapters: Mapping[str, Path], data: LlmData | None, place: Path
) -> Served:
    """Find a model by folder or hub name, and write the files that vLLM reads instead of its own.

    called: the clients' name of the model or adapter. place: the folder to write to. Raises
    UserError where something is missing or belongs to another base.
    """
    found = find_for_use(name, report)
    base, folder = found.base, found.folder
    held = {called: folder, **adapters} if found.is_adapter else dict(adapters)
    for own in adapters.values():
        check_same_base(own, base.model.name)
    called = Path(base.model.name).name if found.is_adapter else called
    if found.tokenizer is None:
        return Served(called, base.folder, None, held)
    found.tokenizer.chat_template = served_template(found.tokenizer, data or data_of(folder))
    digest = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()
    files = place / digest
    found.tokenizer.save_pretrained(files)
    with_stops(found.tokenizer, found.settings).save_pretrained(files)
    return Served(called, base.folder, files, held)


def command(served: Served, host: str, port: int, precision: str) -> list[str]:
    """The command line that starts vLLM; raises UserError for an unsupported adapter."""
    options: dict[str, Any] = {
        "--served-model-name": served.name,
        "--dtype": _DTYPES[precision],
        "--host": host,
        "--port": port,
        "--middleware": f"{ServeGuard.__module__}.{ServeGuard.__name__}",
    }
    if served.files is not None:
        options["--tokenizer"] = options["--generation-config"] = served.files
        options["--chat-template"] = served.files / "chat_template.jinja"
    if not gpu_count():
        options["--gpu-memory-utilization"] = SHARE_OF_CPU
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(served.base)]
    for option, value in options.items():
        words += [option, str(value)]
    if not served.adapters:
        return words
    largest = max(lora_rank(folder) for folder in served.adapters.values())
    words += ["--enable-lora", "--max-lora-rank", str(largest)]
    words += ["--max-loras", str(len(served.adapters)), "--lora-modules"]
    return [*words, *(f"{name}={folder}" for name, folder in served.adapters.items())]


def become(words: list[str], token: str | None) -> NoReturn:
    """Replace this process by vLLM, which reads nothing from the hub and runs until a signal."""
    env = {name: value for name, value in os.environ.items() if name not in _CLOSED}
    env |= {"HF_HUB_OFFLINE": "1", TOKEN: token or ""}
    print(shlex.join(words), file=sys.stderr, flush=True)
    os.execve(words[0], words, env)


def report(text: str) -> None:
    print(f"tatara: {text}", file=sys.stderr, flush=True)


__all__ = ["Served", "become", "command", "prepare"]
