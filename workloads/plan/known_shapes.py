"""Finds a model's shape: in its folder, the hub's cache, a small table, or on the hub."""

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from workloads.config.sections import Model
from workloads.errors import UserError
from workloads.plan.model_names import near_models, renamed
from workloads.plan.shapes import Fields, ModelShape, from_fields

# Seconds for one small file of the hub; a prediction is not worth a longer wait.
_PATIENCE = 5.0
_LARGEST = 1 << 20
# Models by their repository names, without owners, and the fields of their config.json.
_TABLE = Path(__file__).with_name("known_shapes.json")


class UnknownShape(UserError):
    """The shape cannot be found; the text has the reason and the fix."""


def shape_of(model: Model, env: Mapping[str, str]) -> tuple[ModelShape, str]:
    """The model's shape and its source; raises UnknownShape where there is none."""
    fields, source = fields_of(model, env)
    try:
        return from_fields(fields), source
    except UserError as error:
        raise UnknownShape(f"{source}: {error}; memory can be predicted for these only") from None


def fields_of(model: Model, env: Mapping[str, str]) -> tuple[Fields, str]:
    """The fields of the model's config.json and their source; raises UnknownShape if not found.

    Looked for in this order: a local folder, the hub's cache, the table of known models, the hub
    (config.json only, at most 5 seconds, not where HF_HUB_OFFLINE is set).
    """
    folder = Path(model.name)
    if folder.is_dir():
        return _from_file(folder / "config.json"), f"{model.name}/config.json"
    cached = _cached(model, env)
    if cached is not None:
        return _from_file(cached), "config.json in the hub's cache"
    known = in_table(model.name)
    if known is not None:
        return known, "table of known models"
    source = f"config.json of {model.name}"
    return _parsed(_download(model, env), source), "config.json on the hub"


def in_table(name: str) -> Fields | None:
    """The table's fields of config.json for a name with any owner, so that mirrors are found."""
    repository = name.rsplit("/", 1)[-1].lower()
    models = json.loads(_TABLE.read_text(encoding="utf-8"))
    return next((model["config"] for model in models if repository in model["names"]), None)


def _from_file(path: Path) -> Fields:
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UnknownShape(
            f"expected a config.json at {path}, found none that can be read ({error.strerror}); "
            "point model.name at a folder with one, or at a repository of the hub"
        ) from None


def _parsed(content: bytes, name: str) -> Fields:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise UnknownShape(f"{name}: expected JSON, found {error}; copy it again") from None
    if not isinstance(fields, dict):
        found = type(fields).__name__
        raise UnknownShape(f"{name}: expected an object, found {found}; copy it again")
    return fields


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
    if meant := renamed(model.name):
        raise UnknownShape(
            f"there is no model {model.name}; set model.name={meant}, which is meant"
        )
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
    raise UnknownShape(f"{what} and {url} gave: {found}; {_fix(found, model.name)}")


def _fetch(url: str, token: str | None, answer: "queue.Queue[bytes | Exception]") -> None:
    try:
        request = urllib.request.Request(url)
        if token:
            # Not sent to another host when the hub redirects.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_PATIENCE) as reply:
            answer.put(reply.read(_LARGEST))
    except (OSError, ValueError, http.client.HTTPException) as error:
        answer.put(error)


def _fix(error: Exception, name: str) -> str:
    status = error.code if isinstance(error, urllib.error.HTTPError) else None
    # Without a login the hub answers 401 for missing repositories, too.
    near = near_models(name) if status in (401, 404) else []
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    if status in (401, 403):
        return f"set HF_TOKEN to a token that may read it, and accept its licence on the hub{hint}"
    if status == 404:
        return f"correct model.name or model.revision{hint}"
    return "check the network, or set model.name to a local folder"
