"""The hub: downloads, and its failures, distinguished within seconds.

A mistake of the user's (token, licence, name, offline without a copy) is a UserError that says what
to do; a failure that may pass (too many requests, a server's fault, no network) is a Retry.
HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN are read when a function is called.
"""

import difflib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from workloads.errors import Retry, TataraError, UserError
from workloads.plan.model_names import near_models, renamed

Kind = Literal["model", "dataset"]
PROBE_SECONDS = 4.5
DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = ("1", "true", "yes", "on")


def endpoint() -> str:
    """Address of the hub, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the user has forbidden the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any((os.environ.get(name) or "").lower() in _TRUE for name in names)


def cache_folder() -> Path:
    """Where downloads are kept."""
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def page(repo_id: str, kind: Kind) -> str:
    """The repository's page, where a licence is accepted."""
    return f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def probe(
    repo_id: str,
    kind: Kind = "model",
    revision: str | None = None,
    seconds: float = PROBE_SECONDS,
) -> Literal["online", "cached"]:
    """Whether a repository can be read: from the hub, or only from the cache.

    Returns within `seconds`, whatever the network does. Raises UserError or Retry as the module
    says; a network failure is no error where a copy is in the cache.
    """
    check_name(repo_id)
    if kind == "model" and (meant := renamed(repo_id)):
        raise UserError(
            f"{repo_id}: there is no such model; set model.name={meant}, which is meant"
        )
    if is_offline():
        if not _is_cached(repo_id, kind, revision):
            raise _not_cached(repo_id)
        return "cached"
    try:
        with explained(repo_id, kind, revision):
            within(seconds, _header_of(repo_id, kind, revision, seconds), repo_id)
    except Retry as trouble:
        if _is_cached(repo_id, kind, revision):
            return "cached"
        raise Retry(f"{trouble}; there is no copy in the cache") from trouble
    return "online"


def fetch(
    repo_id: str,
    patterns: Iterable[str],
    revision: str | None = None,
    kind: Kind = "model",
    report: Callable[[str], None] | None = None,
) -> Path:
    """Download the files that match `patterns`, unless cached, and return the snapshot's folder."""
    from huggingface_hub import snapshot_download

    cached = probe(repo_id, kind, revision) == "cached"
    if cached and not is_offline() and report is not None:
        report(f"{repo_id}: {endpoint()} cannot be reached; using the copy in the cache")
    with explained(repo_id, kind, revision):
        folder = snapshot_download(
            repo_id,
            repo_type=kind,
            revision=revision,
            cache_dir=cache_folder(),
            endpoint=endpoint(),
            allow_patterns=list(patterns),
            local_files_only=cached,
        )
    return Path(folder)


@contextmanager
def explained(repo_id: str, kind: Kind = "model", revision: str | None = None) -> Iterator[None]:
    """Turn the libraries' exceptions about a repository into UserError or Retry.

    Other exceptions pass through unchanged.
    """
    try:
        yield
    except TataraError:
        raise
    except Exception as error:
        known = explain(error, repo_id, kind, revision)
        if known is None:
            raise
        raise known from error


def explain(
    error: BaseException, repo_id: str, kind: Kind = "model", revision: str | None = None
) -> TataraError | None:
    """The hub error behind an exception or its causes; None if there is none."""
    import httpx
    from huggingface_hub import errors

    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, errors.HfHubHTTPError):
            return _of_response(cause, repo_id, kind, revision)
    for cause in chain:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return _not_cached(repo_id)
        if isinstance(cause, httpx.TimeoutException):
            return Retry(f"{repo_id}: {endpoint()} did not answer in time; try again later")
        if isinstance(cause, httpx.TransportError):
            return _unreachable(repo_id, cause)
        if isinstance(cause, errors.HFValidationError):
            return _bad_name(repo_id)
    for cause in chain:
        # hf_xet (1.8), which transfers large files, raises this for any failure.
        if isinstance(cause, ConnectionError | TimeoutError):
            return _unreachable(repo_id, cause)
        if isinstance(cause, errors.LocalEntryNotFoundError | errors.IncompleteSnapshotError):
            return _not_cached(repo_id)
        if type(cause).__name__ == "DatasetNotFoundError":
            return _not_found(repo_id, kind)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_response(error: Any, repo_id: str, kind: Kind, revision: str | None) -> TataraError:
    """Read an HTTP answer: its status and, where the hub gives one, its error code."""
    status = int(error.response.status_code)
    code = error.response.headers.get("X-Error-Code")
    has_token = "authorization" in error.response.request.headers
    if code == "GatedRepo":
        return _gated(repo_id, kind, has_token)
    if status == 401 and has_token:
        return UserError(
            f"{repo_id}: expected a valid token, found one that the hub refuses (401); make a new "
            f"one at {endpoint()}/settings/tokens and set HF_TOKEN, or unset it for a public "
            f"{kind}"
        )
    if status == 403:
        return UserError(
            f"{repo_id}: the token has no right to this (403); give it read access to this {kind}, "
            f"or write access for a push, at {endpoint()}/settings/tokens"
        )
    if code == "RevisionNotFound":
        return UserError(
            f"{repo_id}: expected revision {revision or 'main'!r}, found none of that name; choose "
            f"a branch, tag or commit from {page(repo_id, kind)}/commits/main"
        )
    if code == "EntryNotFound":
        return UserError(f"{repo_id}: the hub has no {error.response.url.path} (404)")
    if status in (401, 404):
        return _not_found(repo_id, kind)
    if status == 429:
        return Retry(f"{repo_id}: too many requests to {endpoint()} (429){_wait(error.response)}")
    if status >= 500 or status == 408:
        return Retry(f"{repo_id}: {endpoint()} has trouble of its own ({status}); try again later")
    reason = (error.server_message or str(error)).strip().splitlines()[0]
    return UserError(f"{repo_id}: the hub refuses ({status}): {reason}")


def _gated(repo_id: str, kind: Kind, has_token: bool) -> UserError:
    accept = f"accept its licence at {page(repo_id, kind)}"
    if has_token:
        return UserError(
            f"{repo_id}: expected a {kind} that your account may read, found a gated one; {accept} "
            "with the token's account, and let a fine-grained token read gated repositories"
        )
    return UserError(f"{repo_id}: this {kind} is gated and no token is set; {accept}, set HF_TOKEN")


def _wait(response: Any) -> str:
    """When to retry, by the headers of the answer."""
    after = response.headers.get("Retry-After", "")
    window = re.search(r"\bt\s*=\s*(\d+)", response.headers.get("RateLimit", ""))
    seconds = after if after.isdecimal() else window[1] if window else None
    return f"; try again in {seconds} s" if seconds else "; try again later"


def _not_found(repo_id: str, kind: Kind) -> UserError:
    private = "" if token() else ", or set HF_TOKEN if it is private"
    near = near_models(repo_id) if kind == "model" else []
    if near:
        private += f" (did you mean {' or '.join(near)}?)"
    return UserError(
        f"{repo_id}: expected a {kind} on {endpoint()} or a local folder, found neither; "
        f"correct the name{private}{nearest_folder(repo_id)}"
    )


def token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def nearest_folder(name: str) -> str:
    """Hint at the local folder that a mistyped name may mean, as the end of a sentence."""
    path = Path(name)
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        return ""
    rest = path.relative_to(parent).parts
    folders = [inner.name for inner in parent.iterdir() if inner.is_dir()]
    close = difflib.get_close_matches(rest[0], folders, n=1, cutoff=0.6) if rest else []
    if close:
        return f" (did you mean the folder {parent / close[0]}?)"
    return f" (the folder {parent} has no {rest[0]})" if rest and parent != Path(".") else ""


def _bad_name(repo_id: str) -> UserError:
    return UserError(
        f"expected a hub name such as owner/name or an existing folder, found {repo_id!r}; "
        f"correct it{nearest_folder(repo_id)}"
    )


def _not_cached(repo_id: str) -> UserError:
    return UserError(
        f"{repo_id}: the network is off and {cache_folder()} holds no whole copy; unset "
        "HF_HUB_OFFLINE once to download it, or give a local folder"
    )


def _unreachable(repo_id: str, error: BaseException) -> Retry:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return Retry(
        f"{repo_id}: {endpoint()} cannot be reached ({reason}); check the "
        "network, the proxy and HF_ENDPOINT"
    )


def check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise _bad_name(repo_id) from None


def _header_of(
    repo_id: str, kind: Kind, revision: str | None, seconds: float
) -> Callable[[], None]:
    """The request of one file's header, as of a download; a missing file is an answer, too.

    The repository's description is no test: that of a gated repository is public.
    """
    # Here, not in the request: on a busy machine the import takes longer than any hub.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    file = "config.json" if kind == "model" else "README.md"
    address = hf_hub_url(repo_id, file, repo_type=kind, revision=revision, endpoint=endpoint())

    def request() -> None:
        with suppress(RemoteEntryNotFoundError):
            get_hf_file_metadata(address, timeout=seconds, endpoint=endpoint())

    return request


def within(seconds: float, action: Callable[[], None], repo_id: str) -> None:
    """Run an action with a time limit: name look-ups have none of their own.

    Raises what the action raises, Retry after `seconds`. The action goes on in its thread.
    """
    problems: list[Exception] = []
    thread = threading.Thread(target=lambda: _keep(action, problems), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Retry(f"{repo_id}: {endpoint()} did not answer within {seconds:g} s; try again later")
    if problems:
        raise problems[0]


def _keep(action: Callable[[], None], problems: list[Exception]) -> None:
    try:
        action()
    except Exception as error:
        problems.append(error)


def _is_cached(repo_id: str, kind: Kind, revision: str | None) -> bool:
    """Whether the hub's cache, or for data the `datasets` cache, has files of a repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        snapshot_download(
            repo_id,
            repo_type=kind,
            revision=revision,
            cache_dir=cache_folder(),
            allow_patterns=["config.json", "README.md"],
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, IncompleteSnapshotError):
        return kind == "dataset" and _prepared_data(repo_id).is_dir()
    return True


def _prepared_data(repo_id: str) -> Path:
    named = os.environ.get("HF_DATASETS_CACHE")
    home = Path(named) if named else cache_folder().parent / "datasets"
    return home / repo_id.replace("/", "___")
