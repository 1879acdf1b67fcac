"""RoboVLMs' configs as profiles: every field is mapped, kept or refused with the reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from workloads.cli import main
from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.vla.robovlms.config import Inherited, import_config, inherited
from workloads.vla.robovlms.fields import RULES
from workloads.vla.robovlms.translating import Row, translate

pytestmark = pytest.mark.unit

CONFIG: dict[str, Any] = {
    "model": "kosmos",
    "model_url": "https://huggingface.co/microsoft/kosmos-2-patch14-224",
    "model_path": ".vlms/kosmos-2-patch14-224",
    "vlm": {"pretrained_model_name_or_path": ".vlms/kosmos-2-patch14-224"},
    "window_size": 16,
    "fwd_pred_next_n": 10,
    "batch_size": 4,
    "learning_rate": 2e-5,
    "weight_decay": 0,
    "seed": 123,
    "arm_gripper_loss_ratio": 0.01,
    "warmup_epochs": 0.25,
    "warmup_steps": 0,
    "use_hand_rgb": True,
    "norm_action": True,
    "norm_min": -0.65,
    "norm_max": 0.65,
    "train_setup": {"precision": "bf16", "freeze_backbone": False, "train_vision": True,
                    "train_text_embedding": True, "lora_enable": False},
    "act_head": {"type": "LSTMDecoder", "window_size": 1, "fwd_pred_next_n": 1, "latent": 1,
                 "down_sample": "none"},
    "trainer": {"precision": "16", "gradient_clip_val": 1.0, "max_epochs": 5,
                "accumulate_grad_batches": 4, "strategy": "deepspeed_stage_2"},
    "train_dataset": {"type": "DiskCalvinDataset", "data_dir": "calvin/training", "rgb_pad": 10},
    "val_dataset": {"type": "DiskCalvinDataset", "data_dir": "calvin/validation"},
}  # fmt: skip


def _written(folder: Path, content: Any, name: str = "config.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def _rows(folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Row]]:
    """Settings and rows of CONFIG; `a__b` changes b of section a."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    settings, rows = translate(inherited(_written(folder, config)))
    return settings, {row.field: row for row in rows}


def test_the_published_settings(tmp_path: Path) -> None:
    settings, rows = _rows(tmp_path)
    assert not [row for row in rows.values() if row.outcome == "refused"]
    assert settings["model"] == {"name": "microsoft/kosmos-2-patch14-224"}
    assert settings["data"] == {
        "window": 16,
        "cameras": ["static", "gripper"],
        "normalise": {"low": -0.65, "high": 0.65},
        "source": "calvin/training",
        "shift": {"static": 10},
        "augmentation": {"enabled": False},
    }
    assert settings["action_head"] == {
        "chunk": 10, "gripper_weight": 0.01, "kind": "lstm", "latent": 1, "pool": False,
        "reads": "action_token", "history": "head", "layers": 4,
    }  # fmt: skip
    assert settings["optim"] == {
        "learning_rate": 2e-5, "weight_decay": 0, "warmup_steps": 0.05, "schedule": "constant",
    }  # fmt: skip
    assert settings["train"]["precision"] == "fp16"
    assert settings["train"]["global_batch_size"] == 16
    assert rows["scheduler"].text.endswith("(left out: RoboVLMs' default)")
    assert rows["val_dataset.data_dir"].outcome == "kept"


def test_a_mixture_of_open_x_embodiment(tmp_path: Path) -> None:
    mixture = {"type": "OpenVLADataset", "data_root_dir": "oxe", "data_mix": "bridge"}
    settings, rows = _rows(tmp_path, train_dataset=mixture, use_hand_rgb=False)
    assert not [row for row in rows.values() if row.outcome == "refused"]
    assert settings["data"] == {
        "window": 16,
        "cameras": ["primary"],
        "source": "oxe",
        "mixture": "bridge",
        "augmentation": {"enabled": False},
    }
    assert "q01 to q99" in rows["norm_max"].text
    varied = mixture | {"data_mix": "own", "image_aug": True}
    settings, rows = _rows(tmp_path, train_dataset=varied)
    # There the second camera has no images in a mixture, and is left out.
    assert rows["use_hand_rgb"].outcome == "kept" and "cameras" not in settings["data"]
    assert settings["data"]["augmentation"] == {"enabled": True}
    assert "no known mixture; known: bridge, " in rows["train_dataset.data_mix"].text


def test_silent_overwrites_are_reported(tmp_path: Path) -> None:
    _, rows = _rows(tmp_path)
    assert "here '16'" in rows["train_setup.precision"].text
    assert "here 16" in rows["act_head.window_size"].text
    assert "never clipped" in rows["trainer.gradient_clip_val"].text
    settings, rows = _rows(tmp_path, gradient_clip_val=0.5)
    assert settings["optim"]["max_grad_norm"] == 0.5
    assert "here 0.5" in rows["trainer.gradient_clip_val"].text


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"model": "moondream"}, "model", "code that transformers does not have"),
        ({"windw_size": 8}, "windw_size", "did you mean 'window_size'"),
        ({"act_head__layerz": 8}, "act_head.layerz", "no field of RoboVLMs"),
        ({"new": {"a": 1}}, "new.a", "no section of RoboVLMs"),
        ({"train_dataset": [CONFIG["train_dataset"]]}, "train_dataset", "several datasets"),
        ({"act_head": None}, "act_head", "expected a section"),
        ({"trainer": None}, "trainer", "expected a section"),
        ({"trainer": 3}, "warmup_epochs", "fewer epochs"),
        ({"batch_size": [4, 4]}, "batch_size", "several datasets"),
        ({"window_size": "8"}, "window_size", "a whole number"),
        ({"window_size": True}, "window_size", "a whole number"),
        ({"train_setup__freeze_backbone": True}, "train_setup.freeze_backbone", "left out"),
        ({"train_setup__train_vision": 0}, "train_setup.train_vision", "left out"),
        ({"train_setup__lora_enable": True}, "train_setup.lora_enable", "cannot run there"),
        ({"act_head__history_type": "video"}, "act_head.history_type", "history=interleaved"),
        ({"act_head__history_type": "all"}, "act_head.history_type", "post and pre"),
        ({"act_head__type": ["LSTMDecoder"]}, "act_head.type", "known are LSTMDecoder"),
        ({"trainer__precision": "64"}, "trainer.precision", "known are 16"),
        ({"warmup_steps": 10}, "warmup_epochs", "their sum has no setting"),
        ({"warmup_epochs": 6}, "warmup_epochs", "fewer epochs than trainer.max_epochs"),
        ({"norm_action": False}, "norm_action", "always normalised"),
        ({"train_setup__train_vision": None}, "train_setup.train_vision", "left out"),
        ({"fwd_head": {}}, "fwd_head", "images are not predicted"),
        ({"fwd_head": {"type": "Any"}}, "fwd_head.type", "images are not predicted"),
        ({"model_url": "https://example.org/a/b"}, "model_url", "huggingface.co/OWNER/NAME"),
        (
            {"vlm": {"pretrained_model_name_or_path": ".vlms/other"}},
            "vlm.pretrained_model_name_or_path",
            "there this folder is loaded, and not https",
        ),
        (
            {"tokenizer": {"additional_special_tokens": ["<x>"]}},
            "tokenizer.additional_special_tokens",
            "no tokens are added",
        ),
        ({"scheduler": "half-cosine"}, "scheduler", "half-cosine ends at min_lr_scale"),
        ({"trainer__limit_train_batches": 1}, "trainer.limit_train_batches", "train.max_steps"),
        ({"train_dataset__few_shot": True}, "train_dataset.few_shot", "all annotated spans"),
        ({"use_hand_rgb": "no"}, "use_hand_rgb", "true or false"),
    ],
)
def test_what_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], field: str, why: str
) -> None:
    _, rows = _rows(tmp_path, **changes)
    assert rows[field].outcome == "refused" and why in rows[field].text


@pytest.mark.parametrize(
    ("left_out", "outcome", "why"),
    [
        ("train_setup.train_vision", "refused", "cannot be left out of training"),
        ("train_setup.train_text_embedding", "refused", "cannot be left out of training"),
        ("norm_action", "refused", "always normalised"),
        ("act_head.latent", "kept", "a profile's default of action_head.latent counts"),
        ("learning_rate", "kept", "a profile's default of optim.learning_rate counts"),
        ("gradient_clip_val", "kept", "max_grad_norm is 1.0 unless set (left out"),
    ],
)
def test_what_is_left_out_has_the_meaning_that_it_has_there(
    tmp_path: Path, left_out: str, outcome: str, why: str
) -> None:
    config = json.loads(json.dumps(CONFIG))
    section, _, name = left_out.rpartition(".")
    (config[section] if section else config).pop(name, None)
    rows = {row.field: row for row in translate(inherited(_written(tmp_path, config)))[1]}
    assert rows[left_out].outcome == outcome and why in rows[left_out].text


@pytest.mark.parametrize(
    "address",
    [
        "google/paligemma-3b-pt-224",
        "https://huggingface.co/google/paligemma-3b-pt-224.git",
        "https://hf.co/google/paligemma-3b-pt-224/tree/main",
    ],
)
def test_a_model_by_any_of_its_addresses(address: str, tmp_path: Path) -> None:
    settings, _ = _rows(tmp_path, model_url=address)
    assert settings["model"]["name"] == "google/paligemma-3b-pt-224"


@pytest.mark.parametrize(("window", "history"), [(1, "none"), (8, "interleaved")])
def test_discrete_actions_have_no_head_that_remembers(
    window: int, history: str, tmp_path: Path
) -> None:
    """There a window's frames are one sequence, whatever history_type says."""
    settings, _ = _rows(
        tmp_path, act_head__type="DiscreteDecoder", act_head__action_space="discrete",
        window_size=window,
    )  # fmt: skip
    assert settings["action_head"]["history"] == history


def test_every_field_has_one_row_in_order(tmp_path: Path) -> None:
    _, rows = _rows(tmp_path)
    first = [name for name in rows if name.partition(".")[0] in CONFIG]
    assert [name for name in first if "." not in name][:3] == list(CONFIG)[:3]
    leaves = {
        f"{key}.{name}" if isinstance(value, dict) else key
        for key, value in CONFIG.items()
        for name in (value if isinstance(value, dict) else [key])
    }
    assert leaves <= set(rows)
    assert all(getattr(rule, "why", "x") for rule in RULES.values())


def test_a_section_that_replaces_is_told(tmp_path: Path) -> None:
    _written(tmp_path, CONFIG, "base.json")
    own = {"parent": "base.json", "act_head": {"__override__": True, "type": "FCDecoder"}}
    found = inherited(_written(tmp_path, own))
    assert found.config["act_head"] == {"type": "FCDecoder"}
    _, rows = translate(found)
    found.config["trainer"]["__override__"] = False  # merges, as without it
    found.config["train_setup"]["__override__"] = True  # left within what replaced another
    outcomes = {row.field: row.outcome for row in translate(found)[1]}
    assert outcomes["trainer.__override__"] == "kept"
    assert outcomes["train_setup.__override__"] == "refused"
    row = next(row for row in rows if row.field == "act_head.__override__")
    assert row.outcome == "kept" and "training there merges" in row.text


def test_parents_that_cannot_be(tmp_path: Path) -> None:
    missing = _written(tmp_path, {"parent": "absent.json"})
    with pytest.raises(UserError, match="expected its parent absent.json in"):
        import_config(missing)
    _written(tmp_path, {"parent": "b.json"}, "a.json")
    ring = _written(tmp_path, {"parent": "a.json"}, "b.json")
    with pytest.raises(UserError, match="expected parents that end"):
        import_config(ring)
    twice = tmp_path / "twice.json"
    twice.write_text('{"act_head": {"latent": 1, "latent": 2}}')
    with pytest.raises(UserError, match="twice.json: expected each key once, found 'latent' twice"):
        import_config(twice)
    with pytest.raises(UserError, match="expected a file's name as parent, found 3"):
        import_config(_written(tmp_path, {"parent": 3}))
    with pytest.raises(UserError, match="expected a JSON object"):
        import_config(_written(tmp_path, [1]))
    with pytest.raises(UserError, match="absent.json"):
        import_config(tmp_path / "absent.json")


def test_a_parent_is_found_from_above_the_config(tmp_path: Path) -> None:
    """As `configs/base.json`, which RoboVLMs looks for where it runs: in its own folder."""
    (tmp_path / "configs/more").mkdir(parents=True)
    _written(tmp_path / "configs", CONFIG, "base.json")
    child = _written(tmp_path / "configs/more", {"parent": "configs/base.json", "seed": 7})
    assert import_config(child)["seed"] == 7 and import_config(child)["window_size"] == 16


def test_no_name_or_value_leaves_its_comment(tmp_path: Path) -> None:
    odd = {"a\nworkload: llm": 1, "b": "x\u2028workload: llm"}
    config = _written(tmp_path, CONFIG | odd)
    assert main(["import", "robovlms", str(config), "--output", str(tmp_path / "a.yaml")]) == 1
    written = (tmp_path / "a.yaml").read_text()
    assert yaml.safe_load(written)["workload"] == "vla"
    assert r'# refused: "a\nworkload: llm" = 1' in written and r"x\u2028workload" in written


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, profile = _written(tmp_path, CONFIG), tmp_path / "out/policy.yaml"
    words = ["import", "robovlms", str(config), "--output", str(profile)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "0 refused" in printed and "never clipped" in printed
    assert "kept: gradient_clip_val = 0: nothing was clipped" in printed
    assert yaml.safe_load(profile.read_text())["data"]["window"] == 16
    trained, _ = resolve(profile, {})
    assert (trained.window, trained.chunk, trained.action_head.kind) == (16, 10, "lstm")
    table = profile.with_suffix(".md").read_text()
    assert "| `window_size` | `16` | mapped | data.window: 16 |" in table
    assert main(words) == 2 and "a name that is free" in capsys.readouterr().err

    refused = _written(tmp_path, CONFIG | {"model": "uform", "odd": 1}, "wd=0.json")
    assert main(["import", "robovlms", str(refused), "--output", str(tmp_path / "b.yaml")]) == 1
    assert "refused: odd = 1: no field of RoboVLMs" in capsys.readouterr().out
    assert "# refused: model" in (tmp_path / "b.yaml").read_text()


ODD = (None, True, -1, 0, 1.5, float("nan"), 10**400, "x", "", [], ["a"], {}, {"a": {"b": 1}})


def test_odd_values_never_end_in_a_traceback() -> None:
    """Each is mapped, kept or refused, in its own row."""
    odd = ["window_sise", "act_head.__override__", "new.x"]
    for field in [*RULES.keys() - {"parent"}, *odd]:
        section, _, name = field.rstrip(".").rpartition(".")
        for value in ODD:
            config = json.loads(json.dumps(CONFIG))
            place = config.setdefault(section, {}) if section else config
            place[name] = value
            _, rows = translate(Inherited(config, (), ()))
            assert any(row.field.startswith(field.rstrip(".")) for row in rows), (field, value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_workers": -1}, "train.workers"),
        ({"learning_rate": float("nan")}, "learning_rate = NaN: expected a finite number"),
        ({"norm_min": 0.65}, "low below high"),
        ({"seed": "x"}, "train.seed"),
    ],
)
def test_a_value_that_no_profile_may_have_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], named: str
) -> None:
    config = _written(tmp_path, CONFIG | changes)
    assert main(["import", "robovlms", str(config), "--output", str(tmp_path / "a.yaml")]) == 1
    refused = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused")]
    assert len(refused) == 1 and named in refused[0]


def test_what_a_config_does_not_say_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {name: value for name, value in CONFIG.items() if not name.startswith("model_")}
    config = _written(tmp_path, own | {"train_dataset": {"type": "DiskCalvinDataset"}})
    assert main(["import", "robovlms", str(config), "--output", str(tmp_path / "a.yaml")]) == 0
    assert "give them to `tatara train`: model.name, data.source" in capsys.readouterr().out


def test_the_default_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", "robovlms", str(_written(tmp_path, CONFIG, "ft_wd=0_ws.json"))]) == 0
    assert (tmp_path / "ft_wd-0_ws.yaml").is_file() and (tmp_path / "ft_wd-0_ws.md").is_file()


def test_reading_a_config_loads_no_torch() -> None:
    code = (
        "import sys, workloads.vla.robovlms.translating, workloads.vla.calvin; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
