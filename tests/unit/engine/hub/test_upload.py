"""What a push leaves in a repository, and who is told before the training that it may not."""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import lfs
from huggingface_hub.utils._http import http_backoff

from tests.support.fake_hub import GOOD_TOKEN, OTHER_TOKEN, FakeHub
from tests.support.tiny_llama import make_model
from tests.unit.engine.export.test_export import LORA, checkpoint, make_run, trained_adapter, whole
from workloads.engine.hub.hub import explain
from workloads.engine.hub.upload import push, push_card, writer
from workloads.engine.pretrained.adapter import save_adapters
from workloads.errors import Retry, UserError
from workloads.llm.export import EXPORTER, export
from workloads.run.integrity import SEAL

pytestmark = pytest.mark.unit
NAME = "me/model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with FakeHub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def folder(root: Path, name: str, *files: str) -> Path:
    (root / name).mkdir()
    for file in ("README.md", *files):
        (root / name / file).write_text(f"{file} of {name}")
    return root / name


def names(path: Path) -> set[str]:
    """Of an export, without its seal, which is for copies of the run."""
    return {file.name for file in path.iterdir()} - {SEAL}


def test_a_repository_holds_the_files_of_the_last_export_alone(
    hub: FakeHub, tmp_path: Path
) -> None:
    """E-2: adapter, then merged, then an adapter again, then a full model."""
    run = make_run(tmp_path, adapter=LORA)
    model = trained_adapter(make_model(), run)
    checkpoint(run, 7, lambda path: save_adapters(model, path))
    (tmp_path / "full").mkdir()
    full = make_run(tmp_path / "full")
    checkpoint(full, 3, whole(make_model(seed=2)))
    for done in (
        export(run, tmp_path / "adapter"),
        export(run, tmp_path / "merged", merge=True),
        export(run, tmp_path / "again"),
        export(full, tmp_path / "model"),
    ):
        push(done.folder, NAME)
        assert set(hub.pushed[NAME]) == names(done.folder), done.kind
        assert hub.pushed[NAME]["README.md"] == (done.folder / "README.md").read_bytes()


def test_fewer_shards_leave_no_old_ones(hub: FakeHub, tmp_path: Path) -> None:
    """E-2: three files, then one."""
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    push(folder(tmp_path, "big", "config.json", "model.safetensors.index.json", *shards), NAME)
    push(folder(tmp_path, "small", "config.json", "model.safetensors"), NAME)
    assert set(hub.pushed[NAME]) == {"README.md", "config.json", "model.safetensors"}


def test_nothing_of_a_person_is_replaced(hub: FakeHub, tmp_path: Path) -> None:
    """E-2: a card that was written or changed by hand, and files that no export writes."""
    run = make_run(tmp_path)
    checkpoint(run, 1, whole(make_model()))
    export(run)
    push(run.final, NAME)
    text = hub.pushed[NAME]["README.md"].decode()
    own = {"README.md": f"{text}\nMore, by hand.".encode(), "notes.md": b"x", "onnx/a.json": b"y"}
    hub.pushed[NAME] |= own
    told: list[str] = []
    checkpoint(run, 2, whole(make_model(seed=2)))
    export(run)
    push(run.final, NAME, report=told.append)
    assert {name: hub.pushed[NAME][name] for name in own} == own
    assert "stays as it is" in told[0]
    assert push_card(run.final, NAME) == ""
    assert json.loads(hub.pushed[NAME]["tatara.json"])["step"] == 2


def test_a_card_of_ours_follows_the_evaluation(hub: FakeHub, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    checkpoint(run, 1, whole(make_model()))
    export(run)
    push(run.final, NAME)
    run.metric({"step": 1, "loss": 1.5})
    EXPORTER.refresh_card(run)
    assert push_card(run.final, NAME)
    assert b"training loss: 1.5" in hub.pushed[NAME]["README.md"]
    push(run.final, NAME)
    assert hub.pushed[NAME]["README.md"] == (run.final / "README.md").read_bytes()


def test_private_and_branch_are_as_asked(hub: FakeHub, tmp_path: Path) -> None:
    done = folder(tmp_path, "done", "config.json")
    push(done, NAME)
    push(done, "me/open", private=False, revision="v2")
    assert hub.created == {NAME: True, "me/open": False}
    assert hub.branches == [("me/open", "v2")]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("google/mine", "expected a repository of me, team"),
        ("a/b/c", "expected a hub name"),
        ("my model", "expected a hub name"),
    ],
)
def test_names_that_cannot_be_pushed_to(hub: FakeHub, target: str, said: str) -> None:
    """E-12."""
    hub.orgs = [{"name": "team", "roleInOrg": "write"}]
    with pytest.raises(UserError, match=said):
        writer(target)
    assert writer("team/model") == writer("model") == "me"


def test_roles_of_tokens_and_organisations(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """E-12: read tokens, fine-grained ones without the right, and organisations that one reads."""
    hub.orgs = [{"name": "team", "roleInOrg": "read"}]
    with pytest.raises(UserError, match="where the role is read"):
        writer("team/model")
    entity = {"type": "user", "name": "me"}
    scoped = [{"entity": entity, "permissions": ["repo.content.read"]}]
    hub.access = {"role": "fineGrained", "fineGrained": {"scoped": scoped}}
    with pytest.raises(UserError, match="may only read there"):
        writer(NAME)
    scoped[0]["permissions"] = ["repo.write"]
    assert writer(NAME) == "me"
    hub.access = {}
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    with pytest.raises(UserError, match="may only read there"):
        writer(NAME)


def test_a_push_that_was_cut_goes_on(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut within a large file, which is sent again whole; those that arrived are not.

    Nothing is published before all are there.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    once = functools.partial(http_backoff, max_retries=0)
    monkeypatch.setattr(lfs, "http_backoff", once)
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    done = folder(tmp_path, "big", "config.json", "model.safetensors.index.json", *shards)
    for shard in shards:  # more than a connection holds on its way
        (done / shard).write_bytes(shard.encode() * (8 << 20 >> 5))
    hub.large, hub.cut_after = "*.safetensors", 2
    with pytest.raises(Retry, match="cannot be reached"):
        push(done, NAME)
    assert len(hub.stored) == 2 and NAME not in hub.pushed
    hub.cut_after = None
    before = len(hub.requests)
    push(done, NAME)
    sent = [path for method, path in hub.requests[before:] if method == "PUT"]
    assert len(sent) == 1 and set(hub.pushed[NAME]) == names(done)
    assert {hashlib.sha256(body).hexdigest() for body in hub.stored.values()} == set(hub.stored)


def test_a_large_file_that_arrived_otherwise_is_found(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared by the hub's checksums once all is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    done = folder(tmp_path, "done", "config.json", "model.safetensors")
    hub.large = "*.safetensors"
    content = (done / "model.safetensors").read_bytes()
    hub.stored[hashlib.sha256(content).hexdigest()] = content[::-1]
    with pytest.raises(Retry, match=r"model\.safetensors is not what was exported"):
        push(done, NAME)


def test_trouble_with_chunks_of_large_files_is_worth_retrying() -> None:
    """What hf_xet raises for a cut, a server's fault and too many requests alike."""
    known = explain(ConnectionError("Network error: 503"), NAME)
    assert isinstance(known, Retry) and "cannot be reached (Network error: 503)" in str(known)


def test_tags_of_the_config_are_tags_of_the_repository(hub: FakeHub, tmp_path: Path) -> None:
    """export.tags, beside Tatara's own and each once."""
    run = make_run(tmp_path, export={"tags": ["maths", "tatara", "日本語"]})
    checkpoint(run, 1, whole(make_model()))
    export(run)
    push(run.final, NAME)
    front = yaml.safe_load(hub.pushed[NAME]["README.md"].decode().split("---")[1])
    assert front["tags"] == ["tatara", "maths", "日本語"]
