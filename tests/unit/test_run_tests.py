"""The runner of the test groups: its exit code, its closing line, what it says it left out."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_tests.py"
PASSES = "def test_it():\n    assert True\n"
FAILS = "def test_it():\n    assert False\n"


def run(
    tmp_path: Path, tests: dict[str, str], *words: str, workers: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the script in a tree of its own that holds these tests."""
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "run_tests.py"
    # Workers take seconds to start, and only the second try treats them in its own way.
    script.write_text(SCRIPT.read_text().replace("workers=2", f"workers={workers}"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: s\n    gpu: g\n")
    for name, text in tests.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, str(script), *words]
    # Without a PATH there is neither an engine nor a GPU to be found.
    return subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)


def last(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.splitlines()[-1]


def test_counts_and_reasons(tmp_path: Path) -> None:
    slow = f"import pytest\n@pytest.mark.slow\n{FAILS}"
    done = run(tmp_path, {"unit/test_a.py": PASSES, "fault/test_b.py": slow})
    assert (done.returncode, last(done)) == (0, "1 passed, 0 failed, 0 skipped"), done.stdout
    left_out = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("LEFT OUT")]
    assert left_out == ["slow:", "compose:", "cluster:", "vllm:", "optional:", "gpu:"]


def test_a_failure_is_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, {"unit/test_a.py": PASSES, "smoke/test_b.py": FAILS})
    assert (done.returncode, last(done)) == (1, "1 passed, 1 failed, 0 skipped"), done.stdout


def test_a_file_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, {"unit/test_a.py": "import no_such_module\n"})
    assert (done.returncode, last(done)) == (1, "0 passed, 1 failed, 0 skipped"), done.stdout


def test_the_rest_says_why_there_are_no_containers(tmp_path: Path) -> None:
    tests = {"unit/test_a.py": FAILS, "compose/test_c.py": FAILS}
    done = run(tmp_path, tests, "--full", "--rest")
    assert (done.returncode, last(done)) == (0, "0 passed, 0 failed, 0 skipped"), done.stdout
    assert "LEFT OUT compose: no Docker engine answers" in done.stdout
    assert "LEFT OUT cluster: no Slurm with two nodes answers" in done.stdout
    assert "LEFT OUT gpu: no NVIDIA GPU" in done.stdout


def test_essential_groups_must_fit_the_deadline(tmp_path: Path) -> None:
    done = run(tmp_path, {"unit/test_a.py": PASSES}, "--deadline", "1")
    assert done.returncode == 1
    assert "LEFT OUT code: the deadline of 1 s had come" in done.stdout


@pytest.mark.parametrize("folder", ["unit", "fault"])
def test_what_lost_a_race_gets_a_second_look(tmp_path: Path, folder: str) -> None:
    flaky = (
        "from pathlib import Path\n"
        "def test_it():\n"
        "    mark = Path('seen')\n"
        "    first = not mark.exists()\n"
        "    mark.touch()\n"
        "    assert not first\n"
    )
    done = run(tmp_path, {f"{folder}/test_b.py": flaky}, "--deadline", "600", workers=2)
    assert (done.returncode, last(done)) == (0, "1 passed, 0 failed, 0 skipped"), done.stdout
    assert "1 passed at the second try, 0 failed twice" in done.stdout
    assert "UNSTEADY: 1 passed at the second try only" in done.stdout
