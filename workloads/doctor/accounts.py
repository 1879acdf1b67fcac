"""Checks that need an account or the network: the hub's model, Weights & Biases, the clock.

The hub is asked with the standard library alone, so that it works before anything is installed,
with the messages of `engine/hub.py`.
"""

import http.client
import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from workloads.doctor.facts import Facts
from workloads.doctor.hub_rights import check_writer
from workloads.environment import CA_NAMES
from workloads.errors import UserError
from workloads.findings import Finding, Level

HUB = "https://huggingface.co"
PATIENCE = 5.0
_OFFSET = 300  # seconds: a certificate or a token may be refused beyond that
_REDIRECTS = 3
_LONGEST = 1 << 20  # bytes of an answer
_ON = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its status, headers by lower-case name and body, or why there is none."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    body: bytes = b""


def checks(facts: Facts) -> list[Finding]:
    """The hub and the clock, where the profile names a model there; pushes; Weights & Biases."""
    config = facts.config
    if config is None:
        why = facts.settings.missing or "the profile has a mistake"
        return [Finding("hub", "skipped", why)]
    found = [*_hub(facts, config.model), *_own_proxy(facts)]
    if config.export.push != "never":
        found.append(_push(facts, str(config.export.hub_model_id)))
    if config.tracking.wandb == "online":
        found.append(_wandb(facts))
    return found


def _hub(facts: Facts, model: Any) -> list[Finding]:
    if Path(model.name).exists() or not _is_name(model.name):
        return [Finding("hub", "skipped", f"{model.name} is a folder of this machine")]
    cached = is_cached(model.name, facts)
    if _is_offline(facts):
        return [_offline(model.name, cached)]
    base = (facts.env.get("HF_ENDPOINT") or HUB).rstrip("/")
    revision = quote(model.revision or "main", safe="")
    url = f"{base}/{model.name}/resolve/{revision}/config.json"
    reply = ask(url, facts.env.get("HF_TOKEN"), env=facts.env)
    found = judge(reply, model.name, base, bool(facts.env.get("HF_TOKEN")), cached)
    if found.level == "error" and model.fallbacks:
        rest = f"{found.found}; the profile falls back on {', '.join(model.fallbacks)}"
        found = Finding(found.name, "warning", rest, needed=found.needed, fix=found.fix)
    clock = offset(reply)
    return [found, clock] if clock else [found]


def _push(facts: Facts, target: str) -> Finding:
    """Whether the token may write to the repository that the profile pushes to."""
    base, token = (facts.env.get("HF_ENDPOINT") or HUB).rstrip("/"), _token(facts)
    needed = f"a token that may write to {target}"

    def bad(text: str, fix: str, level: Level = "error") -> Finding:
        return Finding("push", level, text, fix, needed)

    new = f"a token from {base}/settings/tokens as HF_TOKEN in .env"
    if not _is_name(target):
        return bad(f"no name of a repository: {target!r}", "set export.hub_model_id=owner/name")
    if _is_offline(facts):
        return bad("HF_HUB_OFFLINE is set", "unset it, or set export.push=never")
    if not token:
        return bad("no token", new)
    reply = ask(f"{base}/api/whoami-v2", token, env=facts.env, method="GET")
    if reply.status in (401, 403):
        return bad(f"a token that the hub refuses ({reply.status})", new)
    if reply.status != 200:
        text = reply.problem or f"{base} answers {reply.status}: trouble that may pass"
        return bad(text, "check network, proxy and HF_ENDPOINT, or try again later", "warning")
    try:
        name = check_writer(json.loads(reply.body), target, base)
    except UserError as error:
        text, _, fix = str(error).rpartition("; ")
        return bad(text, fix)
    except ValueError:
        return bad(f"{base} answers something else than JSON", "correct HF_ENDPOINT", "warning")
    return Finding("push", "ok", f"as {name} to {target}", needed=needed)


def _token(facts: Facts) -> str:
    """HF_TOKEN, or the token of `hf auth login` where the job finds it."""
    if token := facts.env.get("HF_TOKEN"):
        return token
    home = facts.env.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    file = (facts.cache / "huggingface" if facts.in_docker else Path(home)) / "token"
    return _content(file).strip()


def _content(file: Path) -> str:
    """The text of a file; empty where it is not there, or not this user's to read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _is_name(name: str) -> bool:
    return bool(re.fullmatch(r"([\w.-]+/)?[\w.-]+", name))


def _is_offline(facts: Facts) -> bool:
    return (facts.env.get("HF_HUB_OFFLINE") or "").lower() in _ON


def _own_proxy(facts: Facts) -> list[Finding]:
    """Warn of a proxy on the host's loopback, which a container's network cannot reach."""
    if not facts.in_docker or all(service.on_host_network for service in facts.services):
        return []
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    for name in names:
        host = urlsplit(facts.env.get(name, "")).hostname or ""
        if host == "localhost" or host.startswith("127."):
            text = f"{name} names {host}, which in a container is the container itself"
            fix = "an address of this host that containers reach, such as that of docker0"
            return [Finding("proxy", "warning", text, fix)]
    return []


def _offline(name: str, cached: bool) -> Finding:
    if cached:
        return Finding("hub", "ok", f"HF_HUB_OFFLINE is set and {name} is in the cache")
    text = f"HF_HUB_OFFLINE is set and {name} is not in the cache"
    return Finding(
        "hub", "error", text, needed="a copy, or the network", fix="unset HF_HUB_OFFLINE once"
    )


def is_cached(name: str, facts: Facts) -> bool:
    """Whether the run's hub cache holds files of a model."""
    env = facts.env
    if facts.in_docker:
        folder = facts.cache / "huggingface" / "hub"
    else:
        home = env.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
        folder = Path(env.get("HF_HUB_CACHE") or Path(home) / "hub")
    return any((folder / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json"))


def judge(reply: Reply, name: str, base: str, has_token: bool, cached: bool) -> Finding:
    """Judge an answer: token, licence, name or network."""
    needed = f"{name} readable" + (" with your token" if has_token else "")
    code, status = reply.headers.get("x-error-code", ""), reply.status
    licence = f"accept the licence at {base}/{name}"
    token = f"a new token from {base}/settings/tokens as HF_TOKEN in .env"

    def bad(text: str, fix: str, level: Level = "error") -> Finding:
        return Finding("hub", level, text, needed=needed, fix=fix)

    if status is None or status in (408, 429) or status >= 500:
        text = reply.problem or f"{base} answers {status}: trouble that may pass"
        if cached:
            return Finding("hub", "ok", f"{text}; {name} is in the cache", needed=needed)
        return bad(text, "check network, proxy and HF_ENDPOINT, or try again later", "warning")
    if status < 400 or code == "EntryNotFound":
        return Finding("hub", "ok", f"{base} answers; the model can be read", needed=needed)
    if code == "GatedRepo":
        if has_token:
            return bad("a gated model that the token's account may not read", licence)
        return bad("a gated model, and no token", f"{licence} and set HF_TOKEN in .env")
    if status == 401 and has_token:
        return bad("a token that the hub refuses (401)", token)
    if status == 403:
        return bad("a token without the right to read this (403)", token)
    if code == "RevisionNotFound":
        return bad("no such revision (404)", f"choose one from {base}/{name}/commits/main")
    private = "" if has_token else ", or set HF_TOKEN if it is private"
    return bad(f"no such model ({status})", f"correct model.name{private}")


def ask(
    url: str,
    token: str | None,
    seconds: float = PATIENCE,
    env: Mapping[str, str] | None = None,
    method: Literal["HEAD", "GET"] = "HEAD",
) -> Reply:
    """Send a request, with a bound on the whole time.

    env: variables that name proxies and certificates (default: this process's own).
    method: HEAD for the headers alone.
    """
    replies: list[Reply] = []
    thread = threading.Thread(
        target=lambda: replies.append(_asked(url, token, seconds, env or os.environ, method)),
        daemon=True,
    )
    thread.start()
    thread.join(seconds)
    return replies[0] if replies else _silence(url, seconds)


def _silence(url: str, seconds: float) -> Reply:
    return Reply(None, problem=f"{urlsplit(url).netloc} gave no answer in {seconds:g} s")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a token must not reach another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(url: str, env: Mapping[str, str]) -> urllib.request.OpenerDirector:
    """Open the network as the job does: with the proxies and certificates of `env`."""
    proxies = {
        scheme: value
        for scheme in ("http", "https")
        if (value := env.get(f"{scheme}_proxy") or env.get(f"{scheme.upper()}_PROXY"))
    }
    host = f".{urlsplit(url).hostname}"
    direct = (env.get("no_proxy") or env.get("NO_PROXY") or "").split(",")
    if any(
        part == "*" or host.endswith(f".{part.lstrip('.')}")
        for part in map(str.strip, direct)
        if part
    ):
        proxies = {}
    named = next((env[name] for name in CA_NAMES if env.get(name)), None)
    context = ssl.create_default_context(cafile=named)
    return urllib.request.build_opener(
        _Stay, urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )


def _asked(
    url: str, token: str | None, seconds: float, env: Mapping[str, str], method: str
) -> Reply:
    """One answer, after redirects within the same host; one that leads elsewhere is an answer."""
    try:
        opener = _opener(url, env)
    except OSError as error:
        return Reply(None, problem=f"the file of authorities cannot be read: {error}")
    for _ in range(_REDIRECTS):
        reply = _once(opener, url, token, seconds, method)
        target = urljoin(url, reply.headers.get("location", ""))
        moved = reply.status is not None and 300 <= reply.status < 400
        if not moved or urlsplit(target)[:2] != urlsplit(url)[:2] or target == url:
            return reply
        url = target
    return reply


def _once(opener: Any, url: str, token: str | None, seconds: float, method: str) -> Reply:
    headers = {"User-Agent": "tatara-doctor"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(url, method=method, headers=headers)
        with opener.open(request, timeout=seconds) as answer:
            body = answer.read(_LONGEST)
            return Reply(answer.status, _headers(answer.headers), body=body)
    except urllib.error.HTTPError as error:
        return Reply(error.code, _headers(error.headers))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(getattr(error, "reason", error), TimeoutError):
            return _silence(url, seconds)
        return Reply(None, problem=f"{urlsplit(url).netloc} cannot be reached: {why(error)}")


def _headers(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def why(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"{reason.verify_message} (is the clock right?)"
    return str(reason) or type(reason).__name__


def offset(reply: Reply) -> Finding | None:
    """Difference between this machine's clock and the hub's; None where the hub sends no date."""
    try:
        there = parsedate_to_datetime(reply.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None
    away = round(time.time() - there)
    text = f"{abs(away)} s {'ahead of' if away > 0 else 'behind'} the hub's"
    if abs(away) > _OFFSET:
        fix = "sudo timedatectl set-ntp true"
        return Finding("clock offset", "warning", text, needed=f"within {_OFFSET} s", fix=fix)
    return Finding("clock offset", "ok", text, needed=f"within {_OFFSET} s")


def _wandb(facts: Facts) -> Finding:
    if facts.env.get("WANDB_API_KEY") or (not facts.in_docker and _in_netrc()):
        return Finding("Weights & Biases", "ok", "a key", needed="WANDB_API_KEY")
    text = "tracking.wandb=online and no key: the run goes on without it"
    fix = "set WANDB_API_KEY in .env, or USE_WANDB=offline"
    return Finding("Weights & Biases", "warning", text, needed="WANDB_API_KEY", fix=fix)


def _in_netrc() -> bool:
    return "api.wandb.ai" in _content(Path(os.path.expanduser("~/.netrc")))
