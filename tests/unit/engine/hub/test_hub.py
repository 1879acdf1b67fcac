"""What a hub can do wrong, told apart within seconds; a real HTTP server on loopback answers."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import GOOD_TOKEN, OTHER_TOKEN, FakeHub
from workloads.engine.hub import hub
from workloads.errors import Retry, UserError

pytestmark = pytest.mark.unit
NAME, GATED, PRIVATE = "owner/tiny", "owner/gated", "owner/private"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "weights.bin").write_bytes(b"pickles")
    with FakeHub(dict.fromkeys((NAME, GATED, PRIVATE), folder), gated=[GATED]) as server:
        server.private = {PRIVATE}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        yield server


def refusal(name: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        hub.probe(name, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_an_open_repository_answers(server: FakeHub) -> None:
    assert hub.probe(NAME) == "online"
    assert hub.probe(NAME, "dataset") == "online"  # a missing README is an answer too
    assert ("HEAD", f"datasets/{NAME}/resolve/main/README.md") in server.requests


def test_a_bad_token_is_told_from_a_missing_right(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale_secret")
    text = refusal(NAME)
    assert "401" in text and f"{server.url}/settings/tokens" in text
    assert "hf_stale_secret" not in text


def test_a_gated_model_names_the_page_to_accept(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no token is set" in refusal(GATED)
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    text = refusal(GATED)
    assert f"{server.url}/{GATED}" in text and "fine-grained" in text
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    assert hub.probe(GATED) == "online"


def test_a_missing_or_private_repository(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "set HF_TOKEN if it is private" in refusal("owner/nothing")
    assert "set HF_TOKEN if it is private" in refusal(PRIVATE)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    assert hub.probe(PRIVATE) == "online"
    assert "HF_TOKEN" not in refusal("owner/nothing")


def test_a_missing_revision_is_named(server: FakeHub) -> None:
    assert "'v9'" in refusal(NAME, revision="v9")


def test_a_name_that_is_no_name(server: FakeHub) -> None:
    assert "owner/name" in refusal("a/b/c")
    assert server.requests == []


def test_too_many_requests_says_when(server: FakeHub) -> None:
    server.mood = "too many requests"
    with pytest.raises(Retry, match="429.*in 17 s"):
        hub.probe(NAME)


def test_a_broken_hub_is_worth_another_try(server: FakeHub) -> None:
    server.mood = "broken"
    with pytest.raises(Retry, match="503"):
        hub.probe(NAME)


def test_silence_ends_in_time(server: FakeHub) -> None:
    hub.probe(NAME)  # the first import of a process takes its time, too
    server.mood = "silent"
    start = time.monotonic()
    with pytest.raises(Retry, match="did not answer within 0.5 s"):
        hub.probe(NAME, seconds=0.5)
    assert time.monotonic() - start < hub.PROBE_SECONDS < 5


def test_no_network_at_all(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Retry, match="cannot be reached"):
        hub.probe(NAME)


def test_only_what_is_asked_for_is_fetched(server: FakeHub) -> None:
    folder = hub.fetch(NAME, ["*.json"])
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert hub.cache_folder() in folder.parents


def test_what_is_cached_needs_no_network(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.fetch(NAME, ["*.json"])
    server.mood = "broken"
    told: list[str] = []
    assert hub.fetch(NAME, ["*.json"], report=told.append) == folder
    assert "copy in the cache" in told[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.requests.clear()
    assert hub.fetch(NAME, ["*.json"], report=told.append) == folder
    assert server.requests == [] and len(told) == 1


def test_offline_without_a_copy(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refusal(NAME)
    assert server.requests == []


def test_offline_with_half_a_copy(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fetch(NAME, ["*.json"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="holds no whole copy"):
        hub.fetch(NAME, ["*.json", "*.bin"])


def test_a_library_error_is_explained_and_others_pass(server: FakeHub) -> None:
    with pytest.raises(UserError, match="no token is set"), hub.explained(GATED):
        _load_as_transformers_does(GATED)
    with pytest.raises(KeyError), hub.explained(NAME):
        raise KeyError("mine")


def _load_as_transformers_does(name: str) -> None:
    """transformers wraps the hub's error into an OSError of its own words."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, "config.json", endpoint=hub.endpoint(), cache_dir=hub.cache_folder())
    except Exception as error:
        raise OSError("something about a model") from error


def test_the_nearest_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "tiny-llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "data/tiny-llama" in hub.nearest_folder("data/tiny-lama")
    assert "has no models" in hub.nearest_folder("data/models/x")
    assert hub.nearest_folder("owner/name") == ""
