"""Upload of a model: permission, and a check that the repository equals the export."""

import hashlib
import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from workloads.doctor.hub_rights import check_writer
from workloads.engine.hub.hub import (
    PROBE_SECONDS,
    check_name,
    endpoint,
    explained,
    is_offline,
    token,
    within,
)
from workloads.errors import Retry, UserError
from workloads.run.integrity import SEAL

CARD, FACTS = "README.md", "tatara.json"
# Every file that an export can write, at the root of a repository. One that this export did not
# write belongs to another model, and transformers or vLLM would load it as part of this one.
_WRITTEN = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.py",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "oft_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.jinja",
    "*processor_config.json",
    "dataset_statistics.json",
    FACTS,
)
Report = Callable[[str], None]


def account(seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """The token's account by the hub, asked within `seconds`.

    Raises UserError offline and without a token, Retry where no answer comes.
    """
    from huggingface_hub import HfApi

    if is_offline():
        raise UserError(f"expected to reach {endpoint()}, found HF_HUB_OFFLINE set; unset it")
    if token() is None:
        raise UserError(
            f"expected a token to write with, found none; make one at {endpoint()}/settings/tokens "
            "and set HF_TOKEN"
        )
    found: list[dict[str, Any]] = []
    with explained("token"):
        within(seconds, lambda: found.append(HfApi(endpoint=endpoint()).whoami()), "token")
    return found[0]


def writer(repo_id: str) -> str:
    """The account that may write to a repository; UserError where the token's may not."""
    check_name(repo_id)
    return check_writer(account(), repo_id, endpoint())


def push(
    folder: Path,
    repo_id: str,
    private: bool = True,
    revision: str | None = None,
    report: Report = lambda text: None,
) -> str:
    """Upload a model's folder as one commit and return its address.

    The commit deletes files of an earlier export of another kind, and keeps a card that a person
    wrote. Existing files are not sent again, so that an interrupted push resumes; at the end all
    are compared by the hub's checksums. private: of a new repository; an existing one stays as it
    is. revision: a branch, created if missing. Raises
    UserError for a token that may not write, Retry for trouble on the way.
    """
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: expected an exported model, found none; export it first")
    writer(repo_id)
    with explained(repo_id, revision=revision):
        repo_id = _api().create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            _api().create_branch(repo_id, branch=revision, exist_ok=True)
        there = _files_there(repo_id, revision)
        own_card = _is_own_card(repo_id, revision, there, folder)
        if not own_card:
            report(f"{repo_id}: {CARD} there was written by a person; it stays as it is")
        # No seal: the hub keeps checksums of its own. No card that a person has changed.
        mine = _files_of(folder, [SEAL] if own_card else [SEAL, CARD])
        commit = _api().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message="Upload model",
            allow_patterns=mine,
            delete_patterns=_left_over(there, mine) or None,
        )
        _verify(repo_id, folder, mine, commit.oid, report)
    return str(commit.commit_url)


def push_card(folder: Path, repo_id: str, revision: str | None = None) -> str:
    """Upload the card of a model that has been pushed, unless a person has written another."""
    with explained(repo_id, revision=revision):
        if not _is_own_card(repo_id, revision, _files_there(repo_id, revision), folder):
            return ""
        commit = _api().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message="Update model card",
            allow_patterns=[CARD, FACTS],
        )
    return str(commit.commit_url)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def _files_of(folder: Path, without: Iterable[str]) -> list[str]:
    """Names of the folder's files, hidden ones left out."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith(".") and name not in without)


def _files_there(repo_id: str, revision: str | None) -> list[str]:
    """Files of the repository; none where it has just been made."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        return list(_api().list_repo_files(repo_id, revision=revision))
    except (RepositoryNotFoundError, EntryNotFoundError):
        return []


def _left_over(there: Iterable[str], mine: Iterable[str]) -> list[str]:
    gone = set(there) - set(mine)
    return sorted(
        name
        for name in gone
        if "/" not in name and any(fnmatch(name, pattern) for pattern in _WRITTEN)
    )


def card_digest(text: str) -> str:
    """Digest of the exported card, by tatara.json."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_own_card(repo_id: str, revision: str | None, there: Iterable[str], folder: Path) -> bool:
    """Whether the card in the repository may be replaced: none, the hub's own stub, or one of ours
    that nobody has changed since."""
    names = set(there)
    if CARD not in names:
        return True
    text = _read(repo_id, CARD, revision)
    if not text or (text.startswith("---") and not text.split("---", 2)[-1].strip()):
        return True
    try:
        facts = json.loads((FACTS in names and _read(repo_id, FACTS, revision)) or "{}")
    except ValueError:
        facts = {}
    if "card" in facts:
        return bool(facts["card"] == card_digest(text))
    # Written before the digest was kept: by its tag.
    try:
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except yaml.YAMLError:
        front = {}
    return isinstance(front, dict) and "tatara" in (front.get("tags") or [])


def _read(repo_id: str, name: str, revision: str | None) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        path = hf_hub_download(repo_id, name, revision=revision, endpoint=endpoint())
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _verify(repo_id: str, folder: Path, names: list[str], commit: str, report: Report) -> None:
    """Compare the hub's files with the written ones; raises Retry where one differs."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        listed = _api().get_paths_info(repo_id, names, revision=commit)
    except HfHubHTTPError as error:
        status = error.response.status_code
        report(f"{repo_id}: pushed, but the hub gave no checksums to compare ({status})")
        return
    found = {info.path: info for info in listed}
    for name in names:
        info = found.get(name)
        if info is None:
            raise Retry(f"{repo_id}: expected {name} after the push, found none; push again")
        whole = info.size == (folder / name).stat().st_size
        if whole and info.lfs is not None:
            with (folder / name).open("rb") as file:
                whole = info.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
        if not whole:
            raise Retry(f"{repo_id}: {name} is not what was exported; push again")
