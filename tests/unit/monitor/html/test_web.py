"""The view in a browser: real requests to the real server, and who is kept out."""

import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.run_files import ID, Tags, Written
from workloads.errors import UserError
from workloads.monitor.html import views
from workloads.monitor.html.web import ViewServer, is_ours, open_server
from workloads.monitor.reading import find
from workloads.monitor.reading.hardware import GpuReading
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.snapshot import Snapshot

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
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
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


def test_an_address_that_is_none_gets_an_answer(server: ViewServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port)) as odd:
        odd.sendall(b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 404 " in odd.recv(1 << 16).splitlines()[0]


def test_texts_of_files_are_shown_and_never_obeyed(server: ViewServer) -> None:
    for path in (f"/run/demo/{ID}", f"/view/demo/{ID}", "/", "/view"):
        text = get(server, path)[2]
        assert "<img" not in text and "alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)" in get(server, f"/view/demo/{ID}")[2]


def test_the_page_may_run_its_own_script_and_nothing_else(server: ViewServer) -> None:
    policy = get(server, "/")[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for name in ("/view.js", "/charts.js"):
        status, headers, script = get(server, name)
        assert status == 200 and headers["Content-Type"].startswith("text/javascript")
        assert "http" not in script
    assert get(server, "/icon.svg")[1]["Content-Type"].startswith("image/svg+xml")
    style = get(server, "/style.css")[2]
    assert not re.search(r"url\(|@import|http", style)


def test_the_view_follows_the_run(server: ViewServer, written: Written) -> None:
    written.losses([1.25], first=4)
    assert "<b>1.25</b>" in get(server, f"/view/demo/{ID}")[2]


def test_the_same_as_data(server: ViewServer) -> None:
    found = json.loads(get(server, f"/data/demo/{ID}")[2])
    assert found["id"] == ID and found["step"] >= 3 and found["machine"]["cpus"] >= 1
    assert [load["id"] for load in json.loads(get(server, "/data")[2])["runs"]] == [ID]


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
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    assert get(found, f"/run/demo/{ID}")[0] == 200
    found.shutdown()
    found.server_close()
    thread.join()


def test_the_script_gets_parts_and_curves(server: ViewServer, written: Written) -> None:
    found = json.loads(get(server, f"/parts/demo/{ID}")[2])
    assert {"heading", "warnings", "values", "ranks", "events"} <= set(found["parts"])
    assert found["reading"] is False and "<svg" not in "".join(found["parts"].values())
    curves = json.loads(get(server, f"/curves?run=demo/{ID}")[2])
    assert curves["version"] == found["version"]
    assert ["loss", "loss"] in curves["metrics"]
    assert curves["runs"][0]["curves"]["loss"][0] == [1, 4.0, 4.0, 4.0, 1, 1]


def test_several_runs_over_each_other(server: ViewServer, tmp_path: Path) -> None:
    Written(tmp_path, "other").begun().losses([9.0, 8.0])
    query = f"run=demo/{ID}&run=demo/other&run=demo/none"
    status, _, text = get(server, f"/compare?{query}")
    tags = Tags(text)
    assert status == 200 and tags.wrong == [] and list(tags.dangers()) == []
    assert "2 runs" in text and "Settings that differ" in text
    curves = json.loads(get(server, f"/curves?{query}")[2])
    assert [run["name"] for run in curves["runs"]] == [f"demo/{ID}", "demo/other"]
    assert get(server, "/compare?run=demo/none")[0] == get(server, "/compare")[0] == 404
    assert (
        "Settings that differ"
        in json.loads(get(server, f"/parts/compare?{query}")[2])["parts"]["settings"]
    )


def test_runs_that_are_not_compared_are_named(server: ViewServer, tmp_path: Path) -> None:
    names = [f"demo/r{at}" for at in range(10)]
    for name in names:
        Written(tmp_path, name.partition("/")[2]).begun().losses([9.0, 8.0])
    query = "&".join(f"run={name}" for name in [*names, f"demo/{EVIL[:8]}"])
    for address in (f"/compare?{query}", f"/parts/compare?{query}"):
        text = get(server, address)[2]
        assert "8 runs" in text and "demo/r8, demo/r9" in text and "demo/&lt;script&gt;" in text


def test_runs_that_are_not_listed_are_counted(
    server: ViewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not listed" not in get(server, "/")[2]
    monkeypatch.setattr(find, "MOST", 1)
    monkeypatch.setattr(views, "_FRESH", 0.0)
    Written(tmp_path, "other")
    assert "1 older run not listed" in json.loads(get(server, "/parts")[2])["parts"]["older"]
    assert json.loads(get(server, "/data")[2])["older"] == 1


def test_o_d1_many_ranks_are_nodes_and_those_in_trouble(
    server: ViewServer, written: Written
) -> None:
    for rank in range(64):
        ago = 30 if rank == 37 else 0
        written.beat(rank, node=rank // 8, step=2000, ago=ago, host=f"gpu-{rank // 8}.example.org")
    ranks = json.loads(get(server, f"/parts/demo/{ID}")[2])["parts"]["ranks"]
    before, _, every = ranks.partition("<details>")
    assert before.count("<tr") == 1 + 8 + 1 + 1  # nodes, and the silent rank
    assert "1 stalled" in before and ">37<" in before and "all 64 ranks" in every
    assert '<span class="name" title="gpu-4.example.org">gpu-4</span>' in before


def test_o_d1_what_did_not_change_is_the_same_text(server: ViewServer, written: Written) -> None:
    first = json.loads(get(server, f"/parts/demo/{ID}")[2])["parts"]
    written.losses([1.0], first=4)
    second = json.loads(get(server, f"/parts/demo/{ID}")[2])["parts"]
    assert first["events"] == second["events"] and first["warnings"] != ""


def test_o_d4_the_style_waits_for_nobody(
    server: ViewServer, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One browser reads a run for as long as it takes; others get what is known, and the style."""
    assert get(server, f"/view/demo/{ID}")[0] == 200
    monkeypatch.setattr(views, "_FRESH", 0.0)
    reading, go_on = threading.Event(), threading.Event()
    read = RunReader.read

    def slow(reader: RunReader, gpus: Sequence[GpuReading] = ()) -> Snapshot:
        reading.set()
        go_on.wait(30)
        return read(reader, gpus)

    monkeypatch.setattr(RunReader, "read", slow)
    thread = threading.Thread(target=get, args=(server, f"/view/demo/{ID}"))
    thread.start()
    assert reading.wait(20)
    assert get(server, "/style.css")[0] == get(server, "/view.js")[0] == 200
    assert "step <b>" in get(server, f"/view/demo/{ID}")[2]
    go_on.set()
    thread.join()


def test_o_d5_head_is_answered(server: ViewServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert answer.status == 200 and int(answer.headers["Content-Length"]) > 100
    assert answer.read() == b""


def test_o_d5_words_fit_their_numbers(server: ViewServer, tmp_path: Path) -> None:
    one = Written(tmp_path, "one").begun(world_size=1)
    one.run.event("finished", code=0)
    text = get(server, "/view/demo/one")[2]
    assert "1 rank ·" in text and "1 ranks" not in text
    assert "no heartbeats in this run" in text and "no rank has started yet" not in text


@pytest.mark.parametrize("evil", ["\x1b[31m", "\x07", "\u202e", "\x00", "\x9b"])
def test_o_d5_no_control_character_is_sent(server: ViewServer, tmp_path: Path, evil: str) -> None:
    written = Written(tmp_path, "evil").begun()
    for step in (1, 2):
        written.step(step, 1.0, **{f"name{evil}": 1.0})
    written.beat(0, host=f"host{evil}", phase=f"phase{evil}")
    written.run.event(f"event{evil}", reason=f"why{evil}")
    path = written.run.path / "config.json"
    dump = json.loads(path.read_text())
    dump["config"].update({"name": f"demo{evil}", "summary": evil, "model": {"name": evil}})
    path.write_text(json.dumps(dump))
    for address in ("/", "/run/demo/evil", "/parts", "/parts/demo/evil", "/compare?run=demo/evil"):
        assert evil not in get(server, address)[2], address
    curves = json.loads(get(server, "/curves?run=demo/evil")[2])
    assert evil not in "".join(label for _, label in curves["metrics"])
    assert evil not in curves["runs"][0]["name"]


def test_the_log_of_a_rank_stands_beside_its_error(server: ViewServer, written: Written) -> None:
    log = written.run.path / "logs" / "1-1.log"
    log.write_text("begun\n" * 5000 + "step 1\rstep 2\nRuntimeError: CUDA \x1b[31m error <b>\n")
    written.beat(1, phase="failed", code=1, reason="RuntimeError")
    written.run.event("failed", code=1, reason="rank 1 failed")
    error = json.loads(get(server, f"/parts/demo/{ID}")[2])["parts"]["error"]
    assert "1-1.log" in error and "step 2\nRuntimeError: CUDA \ufffd[31m error &lt;b&gt;" in error
    status, headers, text = get(server, f"/log/demo/{ID}?rank=1")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    assert text.endswith("error <b>\n") and "\x1b" not in text
    for rank in ("7", "../../x", "0", ""):
        assert get(server, f"/log/demo/{ID}?rank={rank}")[0] == 404


def test_o_n2_the_list_can_be_sorted_and_searched(server: ViewServer, tmp_path: Path) -> None:
    other = Written(tmp_path, "older", "vla").begun().losses([9.0])
    other.run.event("failed", code=1, reason="no room left")
    text = get(server, "/view")[2]
    heads = re.findall("<th(?: [^>]*)?>(?:<button[^>]*>)?([^<]*)", text)
    assert heads == ["", "run", "phase", "step", "loss", "held-out", "started", "duration", ""]
    row = next(row for row in text.split("<tr")[1:] if "vla/older" in row)
    assert 'data-run="vla/older"' in row and "no room left" in row
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d [A-Z]", row)
    assert 'data-key="9.0"' in row and "failed" in re.findall('data-text="([^"]*)"', row)[0]


def test_a_range_of_steps_is_read_more_closely(server: ViewServer, tmp_path: Path) -> None:
    Written(tmp_path, "long").begun().losses([float(step) for step in range(3000)])
    address = "/curves?run=demo/long"
    whole = json.loads(get(server, address)[2])["runs"][0]["curves"]["loss"]
    assert all(rows > 1 for *_, rows in whole)
    closer = json.loads(get(server, f"{address}&from=100&to=200")[2])["runs"][0]["curves"]["loss"]
    assert [step for step, *_ in closer] == list(range(100, 201))
    for wrong in ("from=x&to=1", "from=9", "from=9&to=1", "from=nan&to=nan"):
        found = json.loads(get(server, f"{address}&{wrong}")[2])
        assert found["runs"][0]["curves"]["loss"] == whole


def test_a_run_that_failed_before_its_heartbeats_has_a_log_too(
    server: ViewServer, tmp_path: Path
) -> None:
    early = Written(tmp_path, "early")
    early.run.event("failed", code=1, reason="no module")
    (early.run.path / "logs" / "agent-0.log").write_text("ModuleNotFoundError: x\n")
    error = json.loads(get(server, "/parts/demo/early")[2])["parts"]["error"]
    assert "agent-0.log" in error and "ModuleNotFoundError: x" in error


def test_held_out_questions_follow_the_run(server: ViewServer, written: Written) -> None:
    address = f"/parts/demo/{ID}"
    assert json.loads(get(server, address)[2])["parts"]["samples"] == ""
    path = written.run.evaluation / "samples.jsonl"
    for step in (10, 20):
        row = {"step": step, "place": "e:1", "asked": EVIL, "output": f"said {step}", "answer": "x"}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        os.utime(path, ns=(step, step))
        shown = json.loads(get(server, address)[2])["parts"]["samples"]
        assert f"said {step}" in shown and f"step {step}" in shown and EVIL not in shown
