"""What goes along to a machine, and what never does."""

import subprocess
from pathlib import Path

import pytest

from workloads.errors import UserError
from workloads.rent.payload import payload

pytestmark = pytest.mark.unit
TOKEN = "hf_" + "canary-in-a-file"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "data").mkdir(parents=True)
    for name, text in {
        "code.py": "print()",
        "data/listed.jsonl": "{}",
        "data/own.jsonl": "{}",
        "new.py": "",
        ".env": f"HF_TOKEN={TOKEN}",
        ".gitignore": ".env\n/data/own.jsonl\n",
    }.items():
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(
        ["git", "-C", str(root), "add", "code.py", "data/listed.jsonl", ".gitignore"], check=True
    )
    return root


def test_what_git_lists_goes_along(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    found = payload(checkout, {"data": {"source": "data/listed.jsonl"}}, {"HF_TOKEN": TOKEN})
    assert set(found.files) == {"code.py", "data/listed.jsonl", ".gitignore"}
    assert found.data == () and found.left == 1 and found.size > 0


def test_data_that_the_profile_names_go_along(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    found = payload(checkout, {"data": {"sources": ["data/own.jsonl", "org/on-the-hub"]}}, {})
    assert found.data == ("data/own.jsonl",)


def test_data_of_this_machine_alone_are_refused(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    elsewhere = checkout.parent / "rows.jsonl"
    elsewhere.write_text("{}")
    for text in (str(elsewhere), "../rows.jsonl"):
        with pytest.raises(UserError, match="expected data inside of the checkout"):
            payload(checkout, {"data": {"source": text}}, {})


def test_a_secret_in_a_listed_file_is_refused(checkout: Path) -> None:
    (checkout / "code.py").write_text(f"token = '{TOKEN}'")
    with pytest.raises(UserError, match="code.py: expected no secret.*HF_TOKEN") as error:
        payload(checkout, {}, {"HF_TOKEN": TOKEN})
    assert TOKEN not in str(error.value)


def test_a_folder_without_git_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a checkout of git"):
        payload(tmp_path, {}, {})
