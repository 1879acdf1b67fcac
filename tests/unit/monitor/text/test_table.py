"""Columns that keep to a width: names give way first. O-D2"""

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.support.run_files import Written
from workloads.monitor.reading import find
from workloads.monitor.reading.find import RunList
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.run_table import search, sort
from workloads.monitor.text import frame, print_once
from workloads.monitor.text.listing import listing
from workloads.monitor.text.table import Cell, shortened, table

pytestmark = pytest.mark.unit
HOST = "gpu-node-{:02d}.a-long-name-of-a-cluster"  # 31 letters, none of them a domain


@pytest.mark.parametrize("room", range(1, 40))
@pytest.mark.parametrize("text", ["short", "a-rather-long-name-0001", "日本語の長い名前です"])
def test_a_shortened_name_keeps_its_ends_and_its_room(text: str, room: int) -> None:
    found = shortened(text, room)
    assert cell_len(found) <= room
    assert found == text if cell_len(text) <= room else "…" in found
    if room > 8:
        assert found[0] == text[0] and (found[-1] == text[-1] or not text.isascii())


def test_names_are_shortened_before_what_follows_is_cut() -> None:
    rows = [[Cell("a" * 30, least=8), Cell("12", right=True), Cell("state")]]
    assert table(rows, 44).plain == f"{'a' * 30}  12  state"
    line = table(rows, 24).plain
    assert cell_len(line) <= 24 and line.endswith("12  state") and "…" in line
    assert table(rows, 12).plain.startswith(f"{shortened('a' * 30, 8)}  ")


def test_a_name_without_room_is_left_out_whole() -> None:
    rows = [[Cell("0"), Cell("a" * 30, least=0), Cell("state")]]
    assert table(rows, 9).plain == "0  state"


@pytest.mark.parametrize("width", [60, 78])
def test_o_d2_long_hosts_push_nothing_out_of_the_side_panel(tmp_path: Path, width: int) -> None:
    written = Written(tmp_path).begun(world_size=4)
    for rank in range(4):
        host = HOST.format(rank)
        written.beat(rank, ago=20 * (rank == 2), host=host, step=200_000, memory=60 << 30)
    lines = frame.ranks(RunReader(written.run).read(), width).plain.splitlines()
    assert lines[0].split()[-3:] == ["memory", "heard", "state"]
    assert all(cell_len(line) <= width for line in lines)
    assert all("60.0 GiB" in line and "200,000" in line for line in lines[1:])
    assert [line.split()[-1] for line in lines[1:]] == ["ok", "ok", "stalled", "ok"]


def test_o_d2_a_domain_that_all_hosts_share_is_left_out(tmp_path: Path) -> None:
    written = Written(tmp_path).begun(world_size=2)
    for rank in range(2):
        written.beat(rank, host=f"gpu-{rank}.cluster.example.org")
    text = frame.ranks(RunReader(written.run).read(), 100).plain
    assert "gpu-0 " in text and "example" not in text
    written.beat(1, host="gpu-0.other.example.org")  # now the domain tells them apart
    assert "gpu-0.other.example.org" in frame.ranks(RunReader(written.run).read(), 120).plain


def failed(outputs: Path, id: str = "20261125-023753-0002", profile: str = "grpo-h100") -> Written:
    written = Written(outputs, id, profile).begun(max_steps=2000).losses([1.5])
    written.run.event("failed", code=1, reason="rank 1 is out of memory while it saved")
    return written


@pytest.mark.parametrize(
    ("width", "reason"), [(80, "failed: rank 1 is out"), (140, "out of memory")]
)
def test_o_d2_the_list_shows_why_a_run_failed(tmp_path: Path, width: int, reason: str) -> None:
    lines = listing(RunList().read([failed(tmp_path).run]), width).plain.splitlines()
    assert reason in lines[1] and all(cell_len(line) <= width for line in lines)
    assert "0002" in lines[1]


def test_a_long_alert_is_cut_at_its_end_before_names_are_shortened(tmp_path: Path) -> None:
    lines = listing(RunList().read([failed(tmp_path).run]), 130).plain.splitlines()
    assert "demo/20261125-023753-0002" in lines[1] and lines[1].endswith("…")
    narrow = listing(RunList().read([failed(tmp_path).run]), 40).plain.splitlines()
    assert "failed" in narrow[1] and cell_len(narrow[1]) <= 40


def test_o_n2_the_list_says_when_with_year_and_zone_and_how_long(tmp_path: Path) -> None:
    lines = listing(RunList().read([failed(tmp_path).run]), 160).plain.splitlines()
    assert lines[0].split()[-2:] == ["started", "duration"]
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d [A-Z]+ +\d[\d.]* s  ", lines[1])


def test_the_list_is_sorted_and_searched(tmp_path: Path) -> None:
    runs = [failed(tmp_path).run]
    runs.append(Written(tmp_path, "b", "demo").begun().losses([0.5]).run)
    runs.append(Written(tmp_path, "c", "demo").begun().run)
    found = RunList().read(runs)
    order = [row.run.id for row in sort(found, "loss", descending=False)]
    assert order == ["b", runs[0].id, "c"]
    assert [row.run.id for row in sort(found, "loss", descending=True)] == [runs[0].id, "b", "c"]
    assert [row.run.id for row in search(found, "MEMORY rank")] == [runs[0].id]
    assert [row.run.id for row in search(found, "demo/b")] == ["b"]
    assert search(found, "demo/b failed") == [] and len(search(found, " ")) == 3


def test_warnings_are_wrapped_by_their_cells(tmp_path: Path) -> None:
    written = Written(tmp_path).begun()
    reason = "메모리가 부족합니다 " * 4 + "メモリ不足です" * 12 + " see `tatara check a b c`"
    written.run.event("failed", code=1, reason=reason)
    lines = frame.warnings(RunReader(written.run).read(), 40).plain.splitlines()
    assert all(cell_len(line) <= 40 for line in lines)
    assert "".join("".join(line[3:] for line in lines).split()) == "".join(
        f"failed:{reason}".split()
    )
    assert any("`tatara check a b c`" in line for line in lines)


def test_runs_that_are_not_listed_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "MOST", 1)
    for id in ("a", "b", "c"):
        Written(tmp_path, id)
    assert print_once.as_dict(tmp_path, None)["older"] == 2


@pytest.mark.parametrize("count", [8, 64])
def test_a_narrow_terminal_shows_the_states(tmp_path: Path, count: int) -> None:
    written = Written(tmp_path).begun(max_steps=200_000, world_size=count).losses([1.0])
    for rank in range(count):
        ago = 30 if rank == 5 else 0
        written.beat(rank, node=rank // 8, step=123_456, ago=ago, host=HOST.format(rank // 8))
    snapshot = RunReader(written.run).read()
    lines = frame.ranks(snapshot, 38).plain.splitlines()
    assert all(cell_len(line) <= 38 for line in lines)
    assert lines[0].endswith("state") and lines[1].endswith("ok" if count == 8 else "1 stalled")
    assert any(line.split()[0] == "5" and line.endswith("stalled") for line in lines)
    assert all(line.cell_len <= 38 for line in frame.header(snapshot, 38).split("\n"))
