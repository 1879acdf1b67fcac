"""O-C9: what a checkout has for its containers is labelled before a start, and nothing else."""

from pathlib import Path

import pytest

from workloads.errors import UserError
from workloads.host import selinux

pytestmark = pytest.mark.unit


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, and a chcon that notes its arguments and fails where a folder says so."""
    for name in ("bin", "outputs/demo", ".cache", "profiles", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".env").touch()
    program = tmp_path / "bin" / "chcon"
    program.write_text('#!/bin/sh\necho "$@" >>said\n[ ! -e refuse ] || { echo no; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_folders_are_labelled_and_data_is_not(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"PATH": f"{here / 'bin'}:/usr/bin:/bin", "TATARA_CACHE": ".cache"}
    selinux.label(selinux.own(env), env)
    assert (here / "said").read_text() == (
        "-R -t container_file_t -l s0 outputs .cache profiles .env\n"
    )
    (here / "refuse").touch()
    with pytest.raises(UserError, match="found: no; run: sudo chcon -R -t container_file_t -l s0"):
        selinux.label(selinux.own(env), env)
    monkeypatch.setattr(selinux, "label_of", lambda path: "u:r:container_file_t:s0")
    selinux.label(selinux.own(env), env)


def test_a_folder_whose_entries_have_other_labels_is_labelled_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"outputs": "u:r:container_file_t:s0", "demo": "u:r:user_home_t:s0"}
    monkeypatch.setattr(selinux, "label_of", lambda path: labels[path.name])
    assert selinux.without_label([Path("outputs"), Path("nowhere")]) == [Path("outputs")]
    labels["demo"] = labels["outputs"]
    assert selinux.without_label([Path("outputs")]) == []


def test_a_network_s_files_have_no_label_of_their_own(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selinux, "label_of", lambda path: "system_u:object_r:nfs_t:s0")
    assert selinux.without_label(selinux.own({})) == []


def test_nothing_is_done_where_the_kernel_does_not_enforce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selinux, "_ENFORCE", tmp_path / "none")
    assert not selinux.is_enforced("docker is not on PATH")
    assert selinux.label_of(tmp_path / "none") == ""
