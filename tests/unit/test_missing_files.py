"""O-A13: what lies behind a link that leads to nothing, as in a container, is told as that."""

from pathlib import Path

import pytest

from workloads.check import shallow
from workloads.config.merge import resolve
from workloads.data.robot import open_dataset
from workloads.errors import UserError
from workloads.missing_files import lost_link, texts

pytestmark = pytest.mark.unit
DEMO = Path(__file__).resolve().parents[2] / "profiles" / "demo.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "logs").symlink_to("/srv/recordings-of-ours")
    (tmp_path / "data" / "here").symlink_to(tmp_path)
    return tmp_path


def test_links_to_nothing_and_below_them(folder: Path) -> None:
    told = "data/logs is a link to /srv/recordings-of-ours, which is not there"
    assert lost_link("data/logs") == lost_link("data/logs/a/b.json") == told
    assert lost_link(folder / "data" / "logs").endswith(told)
    for fine in ("data", "data/here", "data/none", "owner/model", "x" * 5000, "a\0b", ""):
        assert lost_link(fine) == ""


def test_every_setting_that_names_one_is_found(folder: Path) -> None:
    for name in ("data.source", "model.name"):
        config, _ = resolve(DEMO, {}, [f"{name}=data/logs"])
        findings = shallow(config, {"CUDA_VISIBLE_DEVICES": ""})
        (found,) = [
            finding for finding in findings if finding.name == name and finding.level == "error"
        ]
        assert "/srv/recordings-of-ours" in found.found and "TATARA_DATA" in found.fix


def test_a_dataset_behind_one_is_not_looked_for_on_the_hub(folder: Path) -> None:
    with pytest.raises(UserError, match="data/logs is a link to /srv/recordings-of-ours"):
        open_dataset("data/logs")


def test_texts_of_nested_settings() -> None:
    found = dict(texts({"a": {"b": "x", "n": 1}, "c": ["y", {"d": "z"}]}))
    assert found == {"a.b": "x", "c.0": "y", "c.1.d": "z"}
