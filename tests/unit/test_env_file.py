"""O-A3: one reader of `.env`, equal to python-dotenv and to Compose on every line that it takes."""

import errno
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from dotenv import dotenv_values

from workloads import env_file
from workloads.env_file import assignments, keep, line, read
from workloads.errors import UserError

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]

# What people write, the field's cases among them.
TAKEN = [
    "{}=plain",
    '{}="two words"',
    "{}='single'",
    "{}=two words",
    "{}=a #comment",
    "{}=trail  ",
    "{}=a#b",
    '{}="a#b"',
    "{}='a#b' # c",
    '{}="a #b"',
    "{}=it's",
    "export {}=e",
    " {}=e",
    "{} = e",
    "\ufeff{}=e",
    "{}=crlf\r",
    '{}="say \\"x\\""',
    "{}=a\n{}=b",
    "#{}=c\n{}=d",
    '{}="a\'b"',
    "{}=",
    "{}=''",
    '{}=""#c',
    "{}=#x",
    "{}=a=b",
    "{}=C:\\temp\\new",
    "{}='C:\\temp'",
    '{}="C:\\\\temp"',
    '{}="x\ny" # two lines\nM=2',
    "\t{}\t=\t1",
    "{}=a\tb #c",
    "{}=a,b;c",
    "{}=50%",
    "{}=~/x",
    '{}={{"a": 1}}',
    "{}=試し",
    "{}='$2b$12$x'",
    "{}=a$1",
    "{}=a$",
    "{}='it\\'s'",
    '{}="a\\tb"',
    "export\t{}=1",
    "{}=http://u:p@h:3128/?a=b&c=d",
    "{}=a\\ b",
]
REFUSED = [
    "{}: e",
    "{}",
    "export {}",
    '{}="a"b',
    "{}='a' b",
    '{}="a',
    "{}='a",
    "{}= #x",
    "{}=$HOME/x",
    "{}=${HOME}",
    '{}="${HOME}"',
    "{}='${HOME}'",
    "{}=a$$b",
    "{}=a\t#c",
    "{}=\u3000a",
    "'{}'=a",
    "{}:x=a",
    "1{}=a",
    "{}='a\\\\b'",
    '{}="a\\\'b"',
    '{}="a\\$b"',
    "{} x=a",
    "=a",
    "{}=a\rM=b",
    "#c\r{}=a",
    "{}='a' # c\rM=b",
    "\u200b{}=a",
    "{}=a\0b",
    "\x0c{}=a",
    "{}='\\'",
    "M=a\n\ufeff{}=1",
    '{}="a\r\nb"',
]


def taken(text: str) -> dict[str, str]:
    return {found.name: found.value for found in assignments(text, Path(".env"))}


def by_package(text: str) -> dict[str, str | None]:
    logging.getLogger("dotenv.main").setLevel(logging.CRITICAL)
    return dict(dotenv_values(stream=io.StringIO(text, newline=None)))


def by_compose(folder: Path, text: str) -> dict[str, str]:
    (folder / "c.yaml").write_text("services: {a: {image: x, env_file: [.env]}}\n")
    (folder / ".env").write_bytes(text.encode())
    command = ["docker", "compose", "-f", "c.yaml", "config", "--format", "json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["services"]["a"].get("environment") or {}
    return {name: (value or "").replace("$$", "$") for name, value in found.items()}


def written(text: str) -> str:
    text += "\n"
    return text.replace("{}", "HF_TOKEN").replace("{{", "{").replace("}}", "}")


@pytest.mark.parametrize("text", TAKEN)
def test_a_line_is_read_as_python_dotenv_reads_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(written(text).encode())
    assert read(path) == by_package(written(text)) and "HF_TOKEN" in read(path)


@pytest.mark.skipif(shutil.which("docker") is None, reason="NOT TESTED: docker is not on PATH")
@pytest.mark.parametrize("text", TAKEN)
def test_a_line_is_read_as_compose_reads_it(text: str, tmp_path: Path) -> None:
    whole = written(text)
    (tmp_path / "own").write_bytes(whole.encode())
    assert read(tmp_path / "own") == by_compose(tmp_path, whole)


@pytest.mark.parametrize("text", REFUSED)
def test_a_line_that_readers_take_differently_is_refused_with_its_number(text: str) -> None:
    number = 2 + written(text).startswith("M=a")
    with pytest.raises(UserError, match=rf"^\.env:{number}: .*expected .*; ") as error:
        taken("# first\n" + written(text))
    assert error.value.exit_code == 2


def test_a_refusal_shows_no_value() -> None:
    for text in (
        "TOKEN: hf_secret",
        "hf_secret",
        "'hf_secret'=x",
        'TOKEN="hf_secret',
        "T=hf_secret$A",
        "KEY='x'\nhf_secret+ab/cd==",
    ):
        with pytest.raises(UserError) as error:
            taken(text)
        assert "hf_secret" not in str(error.value) or text == "'hf_secret'=x"


def test_what_cannot_be_seen_is_shown() -> None:
    with pytest.raises(UserError, match=r"found '\\u200bTOKEN='"):
        taken("\u200bTOKEN=x")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "device"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A reader would wait for ever at a pipe; a set-up would put its file in the device's place."""
    path = tmp_path / ".env"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path / "gone"),
        "device": lambda: path.symlink_to(os.devnull),
    }
    make[kind]()
    with pytest.raises(UserError, match="expected a file of NAME=value lines, found a "):
        keep(path, {"A": "1"})
    if kind == "folder":  # a virtual environment
        assert read(path) == {}
        return
    with pytest.raises(UserError, match="expected a file of NAME=value lines, found a "):
        read(path)


def test_a_full_disk_leaves_the_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_text", Mock(side_effect=full))
    with pytest.raises(OSError):
        keep(tmp_path / ".env", {"A": "2"})
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
    assert (tmp_path / ".env").read_bytes() == b"A=1\n"


def test_what_is_taken_of_any_text_python_dotenv_takes_alike() -> None:
    pieces = ["a", "b", "N", "=", "#", " ", "'", '"', "\\", "$", "{", "}", "\t", "\n", "1", ":"]
    pieces += ["\\n", '\\"', "\\'", "\u3000", "export ", "0", "é", "-", '"v"', "'v'", "\r\n"]
    random_ = random.Random(20)
    compared = 0
    for _ in range(4000):
        text = "N=" + "".join(random_.choices(pieces, k=random_.randint(0, 8)))
        try:
            found = taken(text)
        except UserError:
            continue
        assert found == by_package(text), text
        compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "two words",
        "a#b",
        "it's",
        'say "x"',
        "C:\\temp",
        "$HOME",
        "a\nb",
        "",
        "#x",
        " x ",
        "p@ss'w\"rd",
        "試し",
        "a\\",
        "https://u:p@h/?q=1&r=2",
    ],
)
def test_what_set_up_writes_is_read_back(value: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nOTHER=1\nNAME=old\nNAME='older'\nLAST=2")
    keep(path, {"NAME": value, "NEW": value})
    assert read(path) == {"OTHER": "1", "NAME": value, "LAST": "2", "NEW": value}
    assert path.read_text().startswith("# mine\nOTHER=1\nNAME=")
    assert path.stat().st_mode & 0o777 == 0o600
    keep(path, {"NAME": value})
    assert path.read_text().count("NAME=") == 1


def test_a_value_that_no_quotes_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^NAME: expected a value that every reader"):
        line("NAME", "it's $HOME")
    (tmp_path / ".env").write_text("A=1\n")
    with pytest.raises(UserError):
        keep(tmp_path / ".env", {"NAME": "it's $HOME"})
    assert (tmp_path / ".env").read_text() == "A=1\n"


def test_a_shell_asks_and_needs_nothing_installed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TATARA_OUTPUTS='./runs#1'\nSEED=3\n")
    command = [sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"]
    command[-1] += "from workloads.env_file import main; sys.exit(main(sys.argv[1:]))"
    command += ["TATARA_OUTPUTS", "SEED", "NONE"]
    env = {"PATH": os.environ["PATH"], "SEED": "it's"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "TATARA_OUTPUTS='./runs#1'\nSEED='it'\"'\"'s'\nNONE=''\n", done.stderr
    (tmp_path / ".env").write_text("A=1\nSEED: 3\n")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(".env:2: expected NAME=value") and "Traceback" not in done.stderr


def test_no_other_reader_is_left() -> None:
    sources = [*ROOT.glob("workloads/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    for path in sources:
        assert "dotenv_values" not in path.read_text() or path.name == env_file.__name__, path
    for path in ROOT.glob("scripts/**/*.sh"):
        code = [row for row in path.read_text().splitlines() if not row.lstrip().startswith("#")]
        readers = [
            row for row in code if ".env" in row and ("sed" in row or "awk" in row or "grep" in row)
        ]
        assert readers == [], path
