"""Token, licence, name and network told apart within seconds; W&B's key; the clock."""

import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.support.doctor_machine import Hub, Machine, llm, service
from tests.support.fake_hub import GOOD_TOKEN, OTHER_TOKEN, FakeHub
from workloads.doctor import accounts
from workloads.doctor.accounts import Reply

pytestmark = pytest.mark.unit
MODEL = "meta-llama/Llama-3.2-1B-Instruct"
GATED = {"X-Error-Code": "GatedRepo"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def host(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0")


@pytest.mark.parametrize(
    ("status", "headers", "token", "verdict", "found", "fix"),
    [
        (200, {}, "", "ok", "the model can be read", ""),
        (200, {}, "hf_good", "ok", "the model can be read", ""),
        (401, GATED, "", "error", "a gated model, and no token", "set HF_TOKEN"),
        (
            403,
            GATED,
            "hf_x",
            "error",
            "a gated model that the token's account",
            "accept the licence",
        ),
        (401, {}, "hf_bad", "error", "a token that the hub refuses (401)", "a new token"),
        (401, {}, "", "error", "no such model (401)", "or set HF_TOKEN if it is private"),
        (403, {}, "hf_x", "error", "without the right to read", "a new token"),
        (404, {}, "hf_x", "error", "no such model (404)", "correct model.name"),
        (
            404,
            {"X-Error-Code": "RevisionNotFound"},
            "",
            "error",
            "no such revision",
            "/commits/main",
        ),
        (404, {"X-Error-Code": "EntryNotFound"}, "", "ok", "the model can be read", ""),
        (429, {}, "hf_x", "warning", "answers 429: trouble that may pass", "try again later"),
        (503, {}, "", "warning", "answers 503", "try again later"),
    ],
)
def test_answers_of_the_hub(
    host: Machine, hub: Hub, status: int, headers: dict[str, str], token: str, verdict: str,
    found: str, fix: str,
) -> None:  # fmt: skip
    hub.status, hub.headers = status, headers
    got = host.examine("llm-4090", HF_TOKEN=token)["hub"]
    assert got.level == verdict and found in got.found and fix in got.fix, got
    sent = f"Bearer {token}" if token else None
    assert hub.asked == [("HEAD", f"/{MODEL}/resolve/main/config.json", sent)]
    assert "hf_" not in got.line()


def test_a_hub_that_says_nothing(host: Machine, hub: Hub) -> None:
    hub.silent = True
    before = time.monotonic()
    reply = accounts.ask(f"{hub.address}/x", None, seconds=0.3)
    assert time.monotonic() - before < accounts.PATIENCE
    assert reply.status is None and "gave no answer in 0.3 s" in reply.problem


def test_no_network(host: Machine, hub: Hub) -> None:
    hub.close()
    got = host.examine("llm-4090")
    assert got["hub"].level == "warning" and "cannot be reached" in got["hub"].found
    assert "clock offset" not in got


def test_no_network_but_a_copy(host: Machine, hub: Hub) -> None:
    hub.status = 503
    copy = host.home / "hub" / "models--meta-llama--Llama-3.2-1B-Instruct" / "snapshots" / "abc"
    copy.mkdir(parents=True)
    env = {"HF_HUB_CACHE": str(host.home / "hub")}
    assert host.examine("llm-4090", **env)["hub"].level == "warning"
    (copy / "config.json").write_text("{}")
    got = host.examine("llm-4090", **env)["hub"]
    assert got.level == "ok" and "is in the cache" in got.found


def test_the_cache_of_containers_is_the_one_they_mount(host: Machine, hub: Hub) -> None:
    hub.status = 503
    host.docker(llm())
    copy = host.home / ".cache/huggingface/hub/models--meta-llama--Llama-3.2-1B-Instruct"
    (copy / "snapshots" / "abc").mkdir(parents=True)
    (copy / "snapshots" / "abc" / "config.json").write_text("{}")
    assert host.examine("llm-4090")["hub"].level == "ok"


def test_offline_by_wish(host: Machine, hub: Hub) -> None:
    got = host.examine("llm-4090", HF_HUB_OFFLINE="1")["hub"]
    assert got.level == "error" and "not in the cache" in got.found
    assert hub.asked == []


def test_models_that_stand_in_for_it(host: Machine, hub: Hub) -> None:
    hub.status = 404
    got = host.examine("llm-4090", "model.fallbacks=[a/b, c/d]")["hub"]
    assert got.level == "warning" and "falls back on a/b, c/d" in got.found


def test_a_folder_asks_nobody(host: Machine, hub: Hub) -> None:
    assert host.examine("demo")["hub"].level == "skipped"
    assert host.examine()["hub"].found == "no profile was named"
    assert hub.asked == []


def test_the_token_stays_with_the_hub(host: Machine, hub: Hub) -> None:
    """A file is often kept at another host: that the hub sends one there is answer enough."""
    other = Hub()
    hub.status, hub.headers = 302, {"Location": f"{other.address}/file"}
    assert host.examine("llm-4090", HF_TOKEN="hf_x")["hub"].level == "ok"
    assert other.asked == []
    other.close()


def test_a_redirect_within_the_hub_is_followed(hub: Hub) -> None:
    hub.status, hub.headers = 307, {"Location": "/renamed"}
    assert accounts.ask(f"{hub.address}/old", "hf_x").status == 200
    assert [path for _, path, _ in hub.asked] == ["/old", "/renamed"]


@pytest.mark.parametrize(
    ("away", "verdict", "found"),
    [(0, "ok", "the hub's"), (4000, "warning", "behind the hub's"), (-4000, "warning", "ahead of")],
)
def test_the_clock_against_the_hubs(away: int, verdict: str, found: str) -> None:
    got = accounts.offset(Reply(200, {"date": formatdate(time.time() + away, usegmt=True)}))
    assert got is not None and got.level == verdict and found in got.found


def test_a_hub_that_does_not_tell_the_time() -> None:
    assert accounts.offset(Reply(200)) is None
    assert accounts.offset(Reply(200, {"date": "yesterday"})) is None


def test_the_key_of_weights_and_biases(host: Machine) -> None:
    online = "tracking.wandb=online"
    assert "Weights & Biases" not in host.examine("demo")
    assert host.examine("demo", online)["Weights & Biases"].level == "warning"
    assert host.examine("demo", online, WANDB_API_KEY="k")["Weights & Biases"].level == "ok"


def test_a_certificate_that_is_refused_names_the_clock() -> None:
    import ssl
    import urllib.error

    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "certificate is not yet valid"
    told = accounts.why(urllib.error.URLError(error))
    assert told == "certificate is not yet valid (is the clock right?)"


def test_the_hub_is_asked_through_the_proxy_of_dotenv(hub: Hub) -> None:
    """O-A11: proxies and authorities that stand in .env alone, as the job has them."""
    through = accounts.ask("http://hub.example/x", None, env={"HTTP_PROXY": hub.address})
    assert through.status is not None
    direct = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}
    assert accounts.ask(f"{hub.address}/x", None, env=direct).status is not None
    refused = accounts.ask(f"{hub.address}/x", None, env={"http_proxy": "http://127.0.0.1:1"})
    assert refused.status is None
    named = accounts.ask(f"{hub.address}/x", None, env={"SSL_CERT_FILE": "/none.pem"})
    assert "authorities cannot be read" in named.problem


def test_a_proxy_of_the_hosts_loopback_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.docker({"demo-master": service("demo", 0, None)})
    found = machine.examine("demo", HTTPS_PROXY="http://u:secret@127.0.0.1:3128")["proxy"]
    assert found.level == "warning" and "secret" not in found.line()
    assert "proxy" not in machine.examine("demo", HTTPS_PROXY="http://proxy.example:3128")
    local = machine.examine("demo", HTTPS_PROXY="http://127.0.0.1:1", TATARA_RUNTIME="local")
    assert "proxy" not in local


@pytest.mark.parametrize(
    ("token", "target", "level", "found", "fix"),
    [
        (GOOD_TOKEN, "me/model", "ok", "as me to me/model", ""),
        (GOOD_TOKEN, "team/model", "ok", "as me to team/model", ""),
        (OTHER_TOKEN, "me/model", "error", "that may only read there", "/settings/tokens"),
        (GOOD_TOKEN, "google/mine", "error", "a repository of me, readers, team", "the owner"),
        (GOOD_TOKEN, "readers/model", "error", "where the role is read", "a contributor"),
        (GOOD_TOKEN, "a/b/c", "error", "no name of a repository", "owner/name"),
        ("hf_bad", "me/model", "error", "refuses (401)", "/settings/tokens"),
        ("", "me/model", "error", "no token", "HF_TOKEN in .env"),
    ],
)
def test_whether_the_token_may_push(
    tmp_path: Path, token: str, target: str, level: str, found: str, fix: str
) -> None:
    """E-12: by its role and the account's organisations, as the check before a training asks."""
    words = ("export.push=end", f"export.hub_model_id={target}")
    with FakeHub({}) as hub:
        hub.orgs = [
            {"name": "team", "roleInOrg": "write"},
            {"name": "readers", "roleInOrg": "read"},
        ]
        host = Machine(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        env = {"HF_TOKEN": token, "HF_HOME": str(tmp_path / "none")}
        got = host.examine("demo", *words, **env)["push"]
        assert got.level == level and found in got.found and fix in got.fix, got
        assert not token or token not in got.line()


def test_a_hub_that_does_not_say_who_may_push(tmp_path: Path) -> None:
    """E-12: trouble that may pass is no mistake; a token of `hf auth login` counts."""
    words = ("export.push=end", "export.hub_model_id=me/model")
    home = tmp_path / "hf"
    home.mkdir()
    (home / "token").write_text(f"{GOOD_TOKEN}\n")
    with FakeHub({}) as hub:
        host = Machine(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(home))
        assert host.examine("demo", *words)["push"].level == "ok"
        hub.mood = "broken"
        got = host.examine("demo", *words)["push"]
        assert got.level == "warning" and "503" in got.found
        offline = host.examine("demo", *words, HF_HUB_OFFLINE="1")["push"]
        assert offline.level == "error" and "unset it" in offline.fix
    assert "push" not in host.examine("demo")
