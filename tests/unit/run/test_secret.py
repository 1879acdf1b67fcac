"""Where the secret of a run comes from."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workloads.errors import UserError
from workloads.run.secret import FILE, VARIABLE, rendezvous_secret

pytestmark = pytest.mark.unit


def test_nodes_that_share_outputs_make_one_that_nobody_else_reads(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: rendezvous_secret({}, outputs), range(32)))
    (secret,) = found
    assert len(secret) == 64
    assert [path.name for path in outputs.iterdir()] == [FILE]
    assert (outputs / FILE).stat().st_mode & 0o777 == 0o600


def test_the_variable_wins_and_must_be_hard_to_guess(tmp_path: Path) -> None:
    assert rendezvous_secret({VARIABLE: "x" * 16}, tmp_path) == b"x" * 16
    with pytest.raises(UserError, match="expected at least 16 characters, found 4; .*openssl"):
        rendezvous_secret({VARIABLE: "1234"}, tmp_path)


@pytest.mark.parametrize(("text", "mode"), [("x" * 64, 0o644), ("x" * 64, 0o660), ("", 0o600)])
def test_a_file_that_others_read_is_no_secret(tmp_path: Path, text: str, mode: int) -> None:
    (tmp_path / FILE).write_text(text)
    (tmp_path / FILE).chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:o}.*delete it, or set {VARIABLE}"):
        rendezvous_secret({}, tmp_path)
