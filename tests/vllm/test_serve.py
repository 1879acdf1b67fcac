"""`tatara serve` by the real vLLM on a CPU: the openai client, adapters, a token, refusals."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.processes import ROOT
from tests.support.tiny_adapter import write_adapter
from tests.support.tiny_llama import write_tiny
from tests.vllm.engine import environment
from workloads.engine.hub.upload import FACTS
from workloads.llm.speaker import Sampling, load

pytestmark = pytest.mark.vllm

# vLLM's kernels for CPUs take heads of 32 values and more.
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
ASKED: Any = [{"role": "user", "content": "犬は何匹?"}]
STARTED = "Application startup complete"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose training put words behind each question, and two adapters beside it."""
    made = tmp_path_factory.mktemp("served")
    base = write_tiny(made / "tiny", **SHAPE)
    (base / FACTS).write_text(json.dumps({"data": {"prompt_suffix": " Think."}}))
    write_adapter(made / "poems", base, 1)
    write_adapter(made / "sums", base, 2, r=12)
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    words = ["serve", str(folder / "tiny"), "--engine", "vllm", "--precision", "fp32"]
    words += [f"--adapter={name}={folder / name}" for name in ("poems", "sums")]
    words += ["--port", "0"]
    env = environment(folder / "outputs") | {"TATARA_CACHE": str(folder / "cache")}
    env["TATARA_SERVE_TOKEN"] = "secret"
    del env["VLLM_ENABLE_V1_MULTIPROCESSING"]  # its server is a process beside the engine's
    process = subprocess.Popen(
        [sys.executable, "-m", "workloads.cli", *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told = list[str]()
    for line in process.stdout:
        told.append(line)
        if STARTED in line:
            break
    url = re.search(r"http://127.0.0.1:\d+/v1", "".join(told))
    assert url and STARTED in told[-1], "".join(told)[-4000:]
    rest = threading.Thread(target=process.stdout.read, daemon=True)
    rest.start()
    yield openai.OpenAI(base_url=url[0], api_key="secret", max_retries=0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    rest.join()


def said(client: openai.OpenAI, model: str, **more: Any) -> Any:
    more = {"messages": ASKED, "max_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(model=model, **more)


def test_base_and_adapters_say_what_chat_says(client: openai.OpenAI, folder: Path) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "poems", "sums"]
    speaker = load(str(folder / "tiny"), "fp32", lambda text: None)
    speaker.add_adapter("poems", folder / "poems")
    speaker.add_adapter("sums", folder / "sums")
    answers = set()
    for model, adapter in (("tiny", "base"), ("poems", "poems"), ("sums", "sums")):
        speaker.use(adapter)
        answer = said(client, model).choices[0].message.content
        own = speaker.answer(ASKED, Sampling(max_new_tokens=12, greedy=True))
        # Bytes that have not become a letter by the end are not sent.
        assert answer.rstrip("\ufffd") == own.rstrip("\ufffd")
        pieces = said(client, model, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer
        answers.add(answer)
    assert len(answers) == 3


def test_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="other"):
        said(client, "other")
    with pytest.raises(openai.BadRequestError, match="512"):
        said(client, "poems", messages=[{"role": "user", "content": "a" * 600}])
    stranger = client.with_options(api_key="guess")
    with pytest.raises(openai.AuthenticationError, match="expected Authorization: Bearer"):
        said(stranger, "tiny")
    with pytest.raises(openai.NotFoundError):
        client.post("/load_lora_adapter", cast_to=object, body={"lora_name": "x"})
