"""The API as it answers: envelope, codes, pace, and what is never followed."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.fake_lambda import JUPYTER, KEY, FakeLambda
from tests.support.fake_machine import FakeClock
from workloads.errors import Retry, UserError
from workloads.rent.lambda_api import ApiError, LambdaApi
from workloads.rent.lambda_cloud import LambdaCloud
from workloads.rent.provider import NoCapacity, Offer, Request

pytestmark = pytest.mark.unit
OFFER = Offer("gpu_1x_a10", "us-east-1", 1.29, 1, 24)


def api(account: FakeLambda, clock: FakeClock, key: str = KEY) -> LambdaApi:
    def send(method: str, url: str, headers: dict[str, str], body: bytes | None) -> tuple[int, str]:
        return account.answer(method, url.removeprefix("http://api"), headers, body, clock.now)

    return LambdaApi(key, "http://api", clock, send)


def test_requests_keep_the_pace() -> None:
    account, clock = FakeLambda(), FakeClock()
    begin = clock.now
    calls = api(account, clock)
    for _ in range(5):
        calls.call("GET", "/instances")
    assert account.refused == 0 and clock.now - begin == pytest.approx(4)


def test_launches_keep_a_pace_of_their_own() -> None:
    account, clock = FakeLambda(keys=[{"name": "mine"}]), FakeClock()
    cloud, begin = LambdaCloud(api(account, clock), key="mine"), clock.now
    for name in ("a", "b"):
        cloud.launch(OFFER, name)
    assert account.refused == 0 and clock.now - begin == pytest.approx(12)


def test_an_offer_has_its_price_gpus_and_memory() -> None:
    offers = LambdaCloud(api(FakeLambda(), FakeClock())).offers()
    found = {offer.type: (offer.price, offer.gpus, offer.gpu_memory) for offer in offers}
    assert found["gpu_1x_h100_pcie"] == (3.29, 1, 80) and found["cpu_4x_general"] == (0.12, 0, 0)


@pytest.mark.parametrize(
    ("request_", "first"),
    [
        (Request(), "gpu_1x_a10"),
        (Request(memory=40), "gpu_1x_h100_pcie"),  # not the GH200, whose processor is another
        (Request(types=("gpu_1x_gh200",)), "gpu_1x_gh200"),
        (Request(max_price=1.0), None),
        (Request(regions=("us-west-3",)), None),
    ],
)
def test_the_cheapest_that_suffices(request_: Request, first: str | None) -> None:
    offers = LambdaCloud(api(FakeLambda(), FakeClock())).offers()
    found = sorted(filter(request_.suits, offers), key=lambda offer: offer.price)
    assert (found[0].type if found else None) == first


def test_errors_are_told_apart_by_their_code() -> None:
    account, clock = FakeLambda(keys=[{"name": "mine"}], races=1), FakeClock()
    cloud = LambdaCloud(api(account, clock), key="mine")
    with pytest.raises(NoCapacity):
        cloud.launch(OFFER, "name")
    with pytest.raises(UserError, match="global/invalid-parameters"):
        cloud.launch(OFFER, "n" * 65)
    assert cloud.machine("0" * 32) is None
    cloud.terminate("0" * 32)  # gone already
    with pytest.raises(UserError, match="LAMBDA_API_KEY"):
        LambdaCloud(api(account, clock, "wrong")).machines()
    with pytest.raises(ApiError, match="no such resource"):
        api(account, clock).call("DELETE", "/instance/1")


def test_no_answer_is_worth_retrying() -> None:
    def send(*_: object) -> tuple[int, str]:
        raise TimeoutError("timed out")

    with pytest.raises(Retry, match="gave no answer: timed out"):
        LambdaApi(KEY, "http://api", FakeClock(), send).call("GET", "/instances")


@pytest.mark.parametrize("text", ["<html>gateway</html>", "[]", '{"data": 1', ""])
def test_what_is_no_answer_of_the_api_is_told(text: str) -> None:
    with pytest.raises(ApiError, match="expected an answer of its API"):
        LambdaApi(KEY, "http://api", FakeClock(), lambda *_: (502, text)).call("GET", "/instances")


def test_a_redirect_is_not_followed() -> None:
    """It would turn POST into GET, and hand the key to somebody else."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_response(301)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ApiError, match="http 301"):
            LambdaApi(KEY, url, FakeClock()).call("POST", "/instance-operations/terminate", {})
    finally:
        server.shutdown()
        server.server_close()
    assert seen == ["/instance-operations/terminate"]


def test_this_machines_key_is_found_or_added(tmp_path: Path) -> None:
    identity = tmp_path / "id_ed25519"
    account, clock = FakeLambda(), FakeClock()
    with pytest.raises(UserError, match="expected a public key.*ssh-keygen"):
        LambdaCloud(api(account, clock), identity).ready()
    (tmp_path / "id_ed25519.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1 me@here\n")
    for _ in range(2):
        LambdaCloud(api(account, clock), identity).ready()
    (key,) = account.keys
    assert key["public_key"] == "ssh-ed25519 AAAAC3NzaC1lZDI1 me@here"
    with pytest.raises(UserError, match="'other'; it has: tatara-"):
        LambdaCloud(api(account, clock), key="other").ready()


def test_a_file_system_names_the_region() -> None:
    systems = [{"name": "mine", "region": {"name": "us-west-3"}}]
    account = FakeLambda(file_systems=systems, keys=[{"name": "mine"}])
    account.regions = {"gpu_1x_a10": ["us-east-1", "us-west-3"]}
    cloud = LambdaCloud(api(account, FakeClock()), key="mine", file_system="mine")
    cloud.ready()
    assert [offer.region for offer in cloud.offers()] == ["us-west-3"]
    with pytest.raises(UserError, match="'other'; it has: mine"):
        LambdaCloud(api(account, FakeClock()), key="mine", file_system="other").ready()


def test_a_machine_shows_no_token() -> None:
    account, clock = FakeLambda(keys=[{"name": "mine"}]), FakeClock()
    cloud = LambdaCloud(api(account, clock), key="mine")
    cloud.launch(OFFER, "name")
    clock.sleep(30)
    (machine,) = cloud.machines()
    assert machine.address == account.address and JUPYTER not in repr(machine)
