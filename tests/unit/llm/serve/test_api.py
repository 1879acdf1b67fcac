"""The OpenAI chat API as the `openai` client meets it: answers, pieces, and every refusal."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from tests.support.tiny_adapter import write_adapter
from tests.support.tiny_llama import write_tiny
from workloads.engine.hub.upload import FACTS
from workloads.llm.serve.api import ChatService, application
from workloads.llm.speaker import Sampling, load

pytestmark = pytest.mark.unit
GREEDY = Sampling(max_new_tokens=12, greedy=True)
ASKED: list[Any] = [{"role": "user", "content": "犬は何匹?"}]
TURNED: list[Any] = [{"role": "developer", "content": "Be short."}, *ASKED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose training put words around each question."""
    made = write_tiny(tmp_path_factory.mktemp("api") / "tiny")
    (made / FACTS).write_text(json.dumps({"data": {"prompt_suffix": " Think."}}))
    return made


def client_of(folder: Path, adapter: Path | None = None, token: str = "") -> openai.OpenAI:
    speaker = load(str(folder), "fp32", lambda text: None)
    if adapter is not None:
        speaker.add_adapter("poems", adapter)
    app = application(ChatService("tiny", speaker), token or None)
    inner = TestClient(app, raise_server_exceptions=False)
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key=token or "none", http_client=inner, max_retries=0
    )


@pytest.fixture(scope="module")
def client(folder: Path) -> openai.OpenAI:
    return client_of(folder)


def said(client: openai.OpenAI, messages: list[Any] = ASKED, **more: Any) -> Any:
    more = {"model": "tiny", "max_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(messages=messages, **more)


def test_it_says_what_chat_says(client: openai.OpenAI, folder: Path) -> None:
    speaker = load(str(folder), "fp32", lambda text: None)
    turned = [{**turn, "role": turn["role"].replace("developer", "system")} for turn in TURNED]
    for asked, talk in ((ASKED, ASKED), (TURNED, turned)):
        answer = said(client, asked)
        assert answer.choices[0].message.content == speaker.answer(talk, GREEDY)
        assert answer.model == "tiny" and answer.choices[0].finish_reason in ("length", "stop")
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED[0]["content"]}]}]
    assert said(client, parts).choices[0].message == said(client).choices[0].message


def test_pieces_make_the_whole_answer(client: openai.OpenAI) -> None:
    pieces = list(said(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    whole = said(client).choices[0].message.content
    # Bytes that have not become a letter by the end are not sent in pieces.
    assert text.rstrip("\ufffd") == whole.rstrip("\ufffd") and len(text) > 3
    assert pieces[-1].usage.completion_tokens == 12 and pieces[-1].choices[0].finish_reason


def test_an_answer_has_the_length_that_newer_clients_ask_for(client: openai.OpenAI) -> None:
    answer = said(client, max_tokens=openai.omit, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3


def test_a_temperature_draws_and_a_seed_draws_again(client: openai.OpenAI) -> None:
    drawn = [
        said(client, temperature=2.0, seed=seed).choices[0].message.content for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_adapter_is_merged_into_its_base(folder: Path, tmp_path: Path) -> None:
    poems = write_adapter(tmp_path / "poems", folder, 1)
    speaker = load(str(folder), "fp32", lambda text: None)
    speaker.add_adapter("poems", poems)
    answer = said(client_of(folder, poems)).choices[0].message.content
    assert answer == speaker.answer(ASKED, GREEDY)
    speaker.use("base")
    assert answer != speaker.answer(ASKED, GREEDY)


def test_the_one_model_is_listed(client: openai.OpenAI) -> None:
    (only,) = client.models.list().data
    assert (only.id, only.object) == ("tiny", "model")


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="expected tiny, the only one") as caught:
        said(client, model="meta/other")
    assert caught.value.code == "model_not_found"


def test_a_prompt_beyond_the_positions_is_refused(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "a" * 600}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="the model's 512 positions, found 6"):
            said(client, long, stream=stream)
    near = said(client, [{"role": "user", "content": "a" * 490}], max_tokens=400)
    assert near.usage.total_tokens <= 512


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "clown", "content": "x"}]}, "messages.0.role"),
        ({"temperature": -1}, "temperature: .* found -1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n: .* found 2"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"extra_body": {"generation_config": "{}"}}, "generation_config: .* leave it out"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}
                        ],
                    }
                ]
            },
            "messages.0.content",
        ),
    ],
)
def test_what_would_be_dropped_is_refused(
    client: openai.OpenAI, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        said(client, **change)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/load_model", 404),
        ("POST", "/reset", 404),
        ("POST", "/v1/audio/transcriptions", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/chat/completions", 405),
    ],
)
def test_no_other_route_is_open(client: openai.OpenAI, method: str, path: str, status: int) -> None:
    inner: Any = client._client
    answer = inner.request(method, f"http://testserver{path}", json={"model": "other/model"})
    assert answer.status_code == status
    assert "POST /v1/chat/completions" in answer.json()["error"]["message"]


def test_a_page_of_a_browser_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="pages of a browser"):
        said(client, extra_headers={"Origin": "http://example.com"})


def test_a_token_is_asked_for(folder: Path) -> None:
    right = client_of(folder, token="right")
    assert said(right, max_tokens=1).choices
    with pytest.raises(openai.AuthenticationError):
        said(right.with_options(api_key="wrong"))
    inner: Any = right._client
    assert inner.get("http://testserver/health").json() == {"status": "ok"}
