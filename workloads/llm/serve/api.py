"""The OpenAI chat API for one model, on a CPU or a GPU without vLLM: transformers' chat handler.

`transformers serve` (5.17) loads any model that a client names, drops fields of a request that
it does not know how to follow, answers beyond a model's positions, and lists what lies in the hub's
cache. Only its chat handler is used here, with one model that is loaded already.
"""

import json
import logging
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHttpException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerationState

from workloads.engine.generate.guard import Guard
from workloads.engine.pretrained.chat import with_stops
from workloads.engine.pretrained.files import positions
from workloads.errors import EXIT_DONE
from workloads.llm.serve.template import served_template
from workloads.llm.speaker import Speaker
from workloads.signals import handled_by

ROUTES = "POST /v1/chat/completions, GET /v1/models or GET /health"
_LONGEST_ANSWER = 1024  # default length of an answer in tokens
_LAST_ANSWERS = 20  # seconds that a stop waits for the model
# Fields of a request that are passed to the handler.
_FOLLOWED = {"messages", "stream", "temperature", "top_p", "seed", "stop", "tools", "logit_bias"}
_UNKNOWN_ROUTE = ("Not Found", "Method Not Allowed")  # Starlette's text


class Part(BaseModel):
    """A part of a turn; these models read only text."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn. `developer` is newer clients' name for the system role."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Format(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class ChatRequest(BaseModel):
    """A request; a field without effect here may only hold its neutral value."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = False
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    logit_bias: dict[int, float] | None = None
    # These do not affect the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    # Unsupported fields, with their neutral values.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    response_format: Format | None = None
    tool_choice: Literal["auto"] | None = None


class _OneModel(ModelManager):
    """Model manager of one loaded model: loads and unloads none."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.force_model = name
        self._held = model, tokenizer

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self._held


class _Handler(ChatCompletionHandler):
    """transformers' handler, for validated requests."""

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        return (self.model_manager.force_model, *self.model_manager.load_model_and_processor())

    def _build_generation_config(self, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        made = super()._build_generation_config(body, *args, **kwargs)
        # Its own sets a temperature, and leaves sampling off where the model's file does.
        if body.get("temperature") or (body.get("top_p") and body.get("temperature") is None):
            made.do_sample = True
        return made


class ChatService:
    """One model that answers as in training: its template, its stop tokens, a merged adapter."""

    def __init__(self, name: str, speaker: Speaker) -> None:
        speaker.merge()
        self.name, self._model, self._tokenizer = name, speaker.model, speaker.tokenizer
        self._tokenizer.chat_template = served_template(self._tokenizer, speaker.data)
        self._model.generation_config = with_stops(self._tokenizer, self._model.generation_config)
        self._limit = positions(self._model.config.to_dict())
        self._since = int(time.time())
        logging.getLogger(ChatCompletionHandler.__module__).setLevel(logging.ERROR)
        manager = _OneModel(name, self._model, self._tokenizer)
        self._handler = _Handler(manager, GenerationState())

    def models(self) -> dict[str, Any]:
        own = {"id": self.name, "object": "model", "created": self._since, "owned_by": "tatara"}
        return {"object": "list", "data": [{**own, "max_model_len": self._limit}]}

    async def answer(self, asked: ChatRequest, request_id: str) -> Response:
        """Answer a request, whole or streamed; raises HTTPException for unsupported requests."""
        if asked.model not in (None, self.name):
            raise HTTPException(
                404, f"model: expected {self.name}, the only one here, found {asked.model}"
            )
        body = asked.model_dump(exclude_none=True, include=_FOLLOWED)
        for turn in body["messages"]:
            turn["role"] = turn["role"].replace("developer", "system")
        wanted = asked.max_completion_tokens or asked.max_tokens or _LONGEST_ANSWER
        body["max_tokens"] = self._room(body, wanted)
        answer: Response = await self._handler.handle_request(body, request_id)
        return answer

    def _room(self, body: dict[str, Any], wanted: int) -> int:
        """The tokens of an answer that the prompt leaves room for, at most those wanted."""
        try:
            prompt = self._tokenizer.apply_chat_template(
                _Handler.get_processor_inputs_from_messages(
                    body["messages"], ModelManager.get_model_modality(self._model, self._tokenizer)
                ),
                tools=body.get("tools"),
                add_generation_prompt=True,
                return_dict=False,
            )
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise HTTPException(
                400, f"messages: expected turns that the chat template takes, found: {error}"
            ) from None
        if self._limit is None:
            return wanted
        if len(prompt) >= self._limit:
            raise HTTPException(
                400,
                f"messages: expected a prompt of fewer tokens than the model's {self._limit} "
                f"positions, found {len(prompt)}; shorten the conversation",
            )
        return min(wanted, self._limit - len(prompt))


def application(service: ChatService, token: str | None = None) -> FastAPI:
    """The routes of one model; with a token, only for requests that send it."""
    app = FastAPI(title="tatara serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token)

    @app.exception_handler(RequestValidationError)
    def unfit(request: Request, error: RequestValidationError) -> JSONResponse:
        return _refusal(request, 400, _said(error.errors()))

    @app.exception_handler(AnyHttpException)
    def refused(request: Request, error: AnyHttpException) -> JSONResponse:
        text = f"expected {ROUTES}" if error.detail in _UNKNOWN_ROUTE else str(error.detail)
        return _refusal(request, error.status_code, text)

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> JSONResponse:
        text = "the model failed on this request; the server's log says why"
        return _refusal(request, 500, text)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, asked: ChatRequest) -> Response:
        return await service.answer(asked, f"chatcmpl-{time.monotonic_ns():x}")

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return service.models()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _said(errors: Sequence[Any]) -> str:
    """The first error of a request as text."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not str(part)[:1].isupper())
    if first["type"] == "extra_forbidden":
        return f"{place}: this server does not know the field; leave it out"
    found = json.dumps(first.get("input"), ensure_ascii=False, default=str)[:80]
    return f"{place or 'body'}: {first['msg']}, found {found}"


def _refusal(request: Request, status: int, text: str) -> JSONResponse:
    print(f"tatara: {request.method} {request.url.path!r:.80}: {text}", file=sys.stderr, flush=True)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = "model_not_found" if status == 404 and text.startswith("model:") else None
    return JSONResponse({"error": {"message": text, "type": kind, "code": code}}, status)


def serve(taken: socket.socket, service: ChatService, token: str | None) -> int:
    """Serve at a bound socket until SIGTERM or Ctrl-C; running answers are completed."""
    settings = uvicorn.Config(
        application(service, token),
        log_level="warning",
        timeout_graceful_shutdown=_LAST_ANSWERS,
        server_header=False,
    )
    # uvicorn shuts down, and then sends the signal again to the earlier handler.
    with handled_by(lambda number, frame: None):
        uvicorn.Server(settings).run(sockets=[taken])
    print("stopped", flush=True)
    return EXIT_DONE


__all__ = ["ChatRequest", "ChatService", "application", "serve"]
