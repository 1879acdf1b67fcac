"""A language model's service and image, themselves, without a GPU: the `openai` client asks it."""

import os
from collections.abc import Callable

import openai
import pytest

from tests.compose.project import Project, docker
from tests.support.tiny_llama import write_tiny
from workloads.launch.network import free_ports

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

FILES = ("compose.yaml", "compose.cpu.yaml")
ASKED = "hi"


def test_the_openai_client_is_answered(project: Callable[..., Project]) -> None:
    port = free_ports()
    chat = project("llm-4090", FILES, TATARA_CHAT_MODEL="outputs/tiny", TATARA_CHAT_PORT=str(port))
    for path in (folder := write_tiny(chat.outputs / "tiny"), *folder.iterdir()):
        os.chown(path, chat.uid, chat.gid)
    chat.up("llm-serve")
    health = ["{{.State.Health.Status}}", chat.container("llm-serve")]
    chat.until(lambda: docker("inspect", "-f", *health).strip() == "healthy", "health")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": ASKED}], max_tokens=4
    )
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    with pytest.raises(openai.NotFoundError, match="the only one here"):
        client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": ASKED}], max_tokens=4
        )
    docker("stop", "--time", "60", chat.container("llm-serve"))
    chat.ends(llm_serve=0)
