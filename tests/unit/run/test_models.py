"""Models as people name them."""

from pathlib import Path

import pytest

from workloads.errors import UserError
from workloads.run import Run
from workloads.run.models import exported_model

pytestmark = pytest.mark.unit


def test_a_model_is_named_by_its_run_its_folder_or_its_name_on_the_hub(tmp_path: Path) -> None:
    run = Run(tmp_path / "vla/20260101-000000-abcd")
    (run.path / "final").mkdir(parents=True)
    (run.path / "manifest.json").write_text("{}")
    (run.path / "config.json").write_text('{"config": {"workload": "vla"}}')
    later = tmp_path / "demo/20260102-000000-abcd/config.json"
    later.parent.mkdir(parents=True)
    later.write_text('{"config": {"workload": "llm"}}')
    for wanted in ("latest", run.id, f"vla/{run.id}", str(run.path), str(run.final)):
        assert exported_model(wanted, tmp_path, "vla") == (str(run.final), run)
    hub = "openvla/openvla-7b"
    assert exported_model(hub, tmp_path, "vla") == (hub, None)
    assert exported_model("vla", tmp_path, "vla") == (str(run.final), run)
    (run.final / "model.safetensors").touch()
    for wrong, told in (
        ("vla/2031", "found no 'vla/2031'"),
        (str(run.final / "model.safetensors"), "name its folder"),
        ("", "empty name"),
    ):
        with pytest.raises(UserError, match=told):
            exported_model(wrong, tmp_path, "vla")
    (run.final / "model.safetensors").unlink()
    run.final.rmdir()
    with pytest.raises(UserError, match=f"run tatara export .*{run.id}"):
        exported_model("latest", tmp_path, "vla")
    with pytest.raises(UserError, match="found no 'nothing'"):
        exported_model("nothing", tmp_path, "vla")
    with pytest.raises(UserError, match="expected a run of the vla workload in .*, found none"):
        exported_model("latest", tmp_path / "empty", "vla")
