"""The view in a browser: real requests to the real server, and who is kept out."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.run_files import ID, Tags, Written
from workloads.errors import UserError
from workloads.monitor.html.web import ViewServer, is_ours, open_server

pytestmark = pytest.mark.unit
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    found = Written(tmp_path).begun().losses([4.0, 3.5, 3.0])
    found.run.eval_metric({"step": 3, "eval_loss": 3.1})
    found.beat(0)
    found.beat(1, ago=20, host=EVIL)
    found.run.event("oom", rank=1, reason=EVIL)
    return found


@pytest.fixture
def server(written: Written, tmp_path: Path) -> Iterator[ViewServer]:
    found = open_server(tmp_path, written.run, 0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def get(server: ViewServer, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_a_run_has_its_page(server: ViewServer) -> None:
    status, headers, text = get(server, f"/run/demo/{ID}")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    for part in (f"demo/{ID}", "training", "step <b>", "no heartbeat for 2", "last events", "<svg"):
        assert part.lower() in text.lower()
    tags = Tags(text)
    assert tags.open == [] and tags.wrong == []
    assert list(tags.dangers()) == []
    scripts = [facts.get("src") for tag, facts in tags.found if tag == "script"]
    assert scripts == ["/view.js"]


def test_texts_of_files_are_shown_and_never_obeyed(server: ViewServer) -> None:
    for path in (f"/run/demo/{ID}", f"/view/demo/{ID}", "/", "/view"):
        text = get(server, path)[2]
        assert "<img" not in text and "alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)" in get(server, f"/view/demo/{ID}")[2]


def test_the_page_may_run_its_own_script_and_nothing_else(server: ViewServer) -> None:
    policy = get(server, "/")[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    status, headers, script = get(server, "/view.js")
    assert status == 200 and headers["Content-Type"].startswith("text/javascript")
    assert "http" not in script.replace("https://", "http")
    style = get(server, "/style.css")[2]
    assert not re.search(r"url\(|@import|http", style)


def test_the_view_follows_the_run(server: ViewServer, written: Written) -> None:
    written.losses([1.25], first=4)
    assert "<b>1.25</b>" in get(server, f"/view/demo/{ID}")[2]


def test_the_same_as_data(server: ViewServer) -> None:
    found = json.loads(get(server, f"/data/demo/{ID}")[2])
    assert found["id"] == ID and found["step"] >= 3 and found["machine"]["cpus"] >= 1
    assert [one["id"] for one in json.loads(get(server, "/data")[2])["runs"]] == [ID]


def test_the_list_leads_to_every_run(server: ViewServer, tmp_path: Path) -> None:
    Written(tmp_path, "other run & more", "vla").begun()
    links = [facts["href"] for tag, facts in Tags(get(server, "/")[2]).found if tag == "a"]
    assert "/run/vla/other%20run%20%26%20more" in links
    for link in links:
        assert link is not None and get(server, link)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/run/demo/none", "/run/demo/../demo", "/run/%2e%2e%2f%2e%2e", "/etc/passwd", "/view/"],
)
def test_what_is_no_run_is_not_found(server: ViewServer, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8737", True),
        ("localhost:9000", True),
        ("LOCALHOST", True),
        ("[::1]:80", True),
        ("evil.example:8737", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8737", False),
        ("", False),
        ("127.0.0.1:8737@evil.example", False),
        ("192.168.0.7:8737", False),
    ],
)
def test_only_this_machines_own_names_are_answered(host: str, ours: bool) -> None:
    assert is_ours(host) == ours


def test_a_rebound_name_gets_nothing(server: ViewServer) -> None:
    status, _, text = get(server, f"/data/demo/{ID}", Host="evil.example:8737")
    assert status == 421 and ID not in text
    assert (
        "Access-Control-Allow-Origin" not in get(server, "/data", Origin="http://evil.example")[1]
    )


def test_nothing_can_be_sent(server: ViewServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    for method in ("POST", "PUT", "DELETE"):
        connection.request(method, "/", body=b"x")
        assert connection.getresponse().status == 501
        connection.close()


def test_it_listens_on_this_machine_only(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_many_browsers_at_once(server: ViewServer) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(get(server, f"/view/demo/{ID}")[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 8


def test_a_port_that_is_taken(server: ViewServer, tmp_path: Path, written: Written) -> None:
    with pytest.raises(UserError, match="cannot be used .*; choose another one with --port"):
        open_server(tmp_path, written.run, server.server_port)


def test_a_run_outside_of_the_outputs(tmp_path: Path, server: ViewServer) -> None:
    far = Written(tmp_path / "far").begun()
    found = open_server(tmp_path / "empty", far.run, 0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    assert get(found, f"/run/demo/{ID}")[0] == 200
    found.shutdown()
    found.server_close()
    thread.join()
