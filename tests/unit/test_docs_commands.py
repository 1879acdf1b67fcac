"""Commands that the pages print: each is one that this command line, Makefile or folder has."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts import commands_page
from scripts.commands_page import PAGES, ROOT, printed
from workloads.cli import main, parse
from workloads.config.merge import resolve
from workloads.errors import UserError

pytestmark = pytest.mark.unit
# Typed as they are printed: they answer in a second, without a network, a GPU or a run.
QUICK = [
    "tatara plan llm-4090",
    "tatara plan llm-4090 --gpu rtx-4090 --gpus 2",
    "tatara plan llm-4090 --gpu rtx-4090 --rows 7473 --price 0.4",
    "tatara plan llm-4090 --suggest --gpu rtx-4090 --gpus 2",
    "tatara plan PROFILE",
    "tatara plan PROFILE --suggest --gpu rtx-4090",
    "tatara plan profiles/llm-4090.yaml",
    "tatara models",
    "tatara models elyza",
    "tatara models --language ja --gpu-memory 24",
    "tatara models --language ja --gpu-memory 24 --method lora",
    "tatara models --gpu-memory 16 --method lora",
    "tatara submit slurm llm-4090 --gpus 2 --time 8:00:00 --print",
    "tatara submit sky llm-4090 --infra lambda --gpu-type H100 --gpus 2 --hours 3 "
    "--max-hourly-cost 20 --print",
    "tatara submit trainjob llm-4090 --image registry.example/tatara-llm:1 --gpus 2 --hours 3 "
    "--queue team --print",
    "tatara rent lambda grpo-h100 --hours 3 --dry-run",
    "tatara rent list",
    "tatara prune",
]
NOTHING_FITS = 1  # what plan answers where a profile does not fit the GPU
SETTING = re.compile(r"[a-z_]+(\.\w+)+=")


def of_tatara(command: Sequence[str]) -> list[str] | None:
    """The words behind `tatara`; None for a form with words left out, or another command."""
    names = [Path(word).name for word in command]
    if "tatara" not in names or any("…" in word or word.startswith("[") for word in command):
        return None
    words = list(command[names.index("tatara") + 1 :])
    return None if "--help" in words or words[:1] == ["--print-completion"] else words


def problem(words: list[str], whole: bool) -> str | None:
    """What our own command line has against it; a name within a sentence may lack arguments."""
    try:
        found, rest = parse([{"N": "2"}.get(word, word) for word in words])
    except UserError as error:
        return None if not whole and "required" in str(error) else str(error)
    if rest and words[0] not in ("train", "submit", "rent", "check", "plan", "doctor"):
        return f"unknown: {rest}"
    settings = [word for word in rest if SETTING.match(word)]
    paths = [ROOT / "profiles" / place / f"{getattr(found, 'profile', '')}.yaml"
             for place in ("", "recipes")]  # fmt: skip
    path = next((path for path in paths if path.is_file()), None)
    if path is None or not settings:
        return None
    try:
        resolve(path, {}, settings)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_printed_command_is_one_of_ours(page: Path) -> None:
    commands = ((of_tatara(command), whole) for command, whole in printed(page).items())
    told = [(words, problem(words, whole)) for words, whole in commands if words is not None]
    assert [(" ".join(words), said) for words, said in told if said] == []


def test_there_are_commands_to_look_at() -> None:
    llm = [command for command in printed(ROOT / "docs" / "llm.md") if of_tatara(command)]
    assert len(llm) > 8
    assert problem(["train", "demo", "optim.lerning_rate=1"], True)
    assert problem(["chat", "RUN", "--adaptor", "x=y"], False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_and_scripts_that_a_page_prints_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in printed(page):
        target = next((word for word in command[1:] if not word.startswith("-")), "")
        if command[0] == "make" and re.fullmatch(r"[a-z0-9-]+", target):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        if command[0].startswith(("./", "scripts/")):
            assert (ROOT / command[0]).is_file(), command


def test_blocks_of_other_languages_hide_no_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```csv title="a.csv"\nmake nothing\n```\n\ntext with `tatara report latest`\n\n'
        "```sh\nmake train   # a comment\nOMP=1 .venv/bin/tatara plan a && make test\n```\n"
    )
    assert printed(page) == {
        ("make", "train"): True,
        (".venv/bin/tatara", "plan", "a"): True,
        ("make", "test"): True,
        ("tatara", "report", "latest"): False,
    }


@pytest.mark.runs(*QUICK)
@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_does_something_as_it_is_printed(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("profiles", "workloads"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo").symlink_to(ROOT / "data/demo")
    monkeypatch.chdir(tmp_path)
    for name in ("LAMBDA_API_KEY", "TATARA_OUTPUTS", "RECIPE"):
        monkeypatch.delenv(name, raising=False)
    words = [{"PROFILE": "demo"}.get(word, word) for word in shlex.split(command)[1:]]
    code = main(words)
    said = capsys.readouterr()
    assert code == 0 or (words[0] == "plan" and code == NOTHING_FITS), said.out + said.err
    assert said.out.strip() and "Traceback" not in said.err


def test_what_is_said_to_have_been_run_is_printed_by_a_page() -> None:
    every = {command for page in PAGES for command in commands_page.texts(page)}
    said = {**commands_page.by_tests(), **commands_page.by_hand()}
    assert {command: place for command, place in said.items() if command not in every} == {}
    both = set(commands_page.by_tests()) & set(commands_page.by_hand())
    assert both == set(), "a test runs it: take it out of docs/typed-by-hand.yaml"


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_every_command_of_the_first_pages_was_run(name: str) -> None:
    """Those for GPUs too, on a CPU: what was seen stands beside them."""
    assert commands_page.never_run(ROOT / name) == []


def test_a_command_that_nobody_has_run_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\nmake train\ncp .env.example .env\nmake train-tpu\n```\nand `make board`")
    assert commands_page.never_run(page) == ["make train-tpu", "make board"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("make train-4090 NODES=1", True),
        ("scripts/start_training.sh llm-4090 --node 0 --master ADDRESS", True),
        ("tatara train profiles/vla.yaml", True),
        ("make train-vla RECIPE=policy-tiny", False),
        ("scripts/setup_environment.sh llm-4090", False),
        ("docker compose --profile llm-4090 build", False),
        ("tatara train demo --resume latest", False),
    ],
)
def test_commands_for_gpus_are_known(command: str, expected: bool) -> None:
    assert commands_page.never_on_a_gpu(command) is expected


def test_what_was_seen_stands_beside_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        {"day": "1st", "machine": "CPU", "seen": "refused", "commands": ["make train-h100"]},
        {"day": "2nd", "machine": "CPU", "commands": ["make train-h100", "make train-vla"]},
    ]
    monkeypatch.setattr(commands_page, "_entries", lambda: entries)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```\nmake train-h100\nmake train-vla\nmake train\n```\n")
    monkeypatch.setattr(commands_page, "PAGES", [page])
    rows = commands_page.page().splitlines()
    seen = "by hand, 1st, CPU: refused; by hand, 2nd, CPU; never on a GPU"
    assert f"| `make train-h100` | {seen} |" in rows
    (written,) = commands_page.pages().values()
    assert written.splitlines()[-1].endswith("; 2 for GPUs, never run on one.*")
    entries[1]["gpus"] = "2 x RTX 4090"
    (written,) = commands_page.pages().values()
    assert written.splitlines()[-1].endswith("#page)).*")


def test_a_page_says_how_many_of_its_commands_were_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```\nmake one\n./scripts/two.sh\ntatara three\n```\n")
    monkeypatch.setattr(commands_page, "PAGES", [page])
    monkeypatch.setattr(commands_page, "by_tests", lambda: {"make one": "tests/t.py::test_one"})
    monkeypatch.setattr(commands_page, "by_hand", lambda: {"scripts/two.sh": "by hand, 1st, here"})
    (written,) = commands_page.pages().values()
    line = "*Commands on this page: 1 run by tests, 1 typed by hand, 1 only checked against"
    assert written.splitlines()[-1].startswith(line)
    page.write_text(written.replace("1 typed", "7 typed"))
    assert commands_page.pages() == {page: written}
    rows = commands_page.page().splitlines()
    assert "| `make one` | `tests/t.py::test_one` |" in rows
    assert "| `scripts/two.sh` | by hand, 1st, here |" in rows and "| `tatara three` | – |" in rows
