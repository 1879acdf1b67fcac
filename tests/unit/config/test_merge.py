"""How profiles, environment and command line become one config."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.profile_folder import BASE, ProfileFolder
from workloads.catalogue import WORKLOADS
from workloads.config.merge import CONTRACT, SHORT_NAMES, leaves, load_dump, resolve
from workloads.errors import UserError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def profiles(tmp_path: Path) -> ProfileFolder:
    return ProfileFolder(tmp_path)


# Precedence and provenance


def test_default_profile_environment_command_line(profiles: ProfileFolder) -> None:
    more = "honours: [LEARNING_RATE]\noptim:\n  learning_rate: 1e-3\n"
    short = {"LEARNING_RATE": "2e-3"}
    exact = short | {"TATARA__OPTIM__LEARNING_RATE": "3e-3"}
    name = "optim.learning_rate"

    def value(*arguments: Any) -> tuple[float, str]:
        config, provenance = profiles.resolve(*arguments)
        return config.optim.learning_rate, provenance[name]

    assert value() == (2e-5, "default")
    assert value(more) == (1e-3, f"{profiles.path}:8:18")
    assert value(more, short) == (2e-3, "environment LEARNING_RATE")
    assert value(more, exact) == (3e-3, "environment TATARA__OPTIM__LEARNING_RATE")
    words = ["optim.learning_rate=4e-3"]
    assert value(more, exact, words) == (4e-3, "command line optim.learning_rate")
    words += ["--learning_rate", "5e-3"]
    assert value(more, exact, words) == (5e-3, "command line --learning_rate")


def test_every_setting_has_a_source(profiles: ProfileFolder) -> None:
    config, provenance = profiles.resolve("train:\n  seed: 7\n")
    assert set(provenance) == set(leaves(config))
    told = {name for name, source in provenance.items() if source != "default"}
    assert told == {"workload", "name", "model.name", "data.source", "train.seed"}
    assert provenance["name"] == "file name of the profile"
    assert provenance["model.name"] == f"{profiles.path}:3:9"


def test_the_name_is_the_file_name_unless_set(profiles: ProfileFolder) -> None:
    assert profiles.resolve()[0].name == "one"
    assert profiles.resolve("name: other\n")[0].name == "other"


def test_a_setting_in_a_group_leaves_the_others(profiles: ProfileFolder) -> None:
    more = "train: {epochs: 3, seed: 5}\n"
    config, _ = profiles.resolve(more, {"TATARA__TRAIN__SEED": "6"}, ["train.epochs=4"])
    assert (config.train.epochs, config.train.seed, config.train.workers) == (4, 6, 0)


# Short names


def test_an_honoured_short_name_and_an_ignored_one(profiles: ProfileFolder) -> None:
    env = {"BATCH_SIZE": "8", "LEARNING_RATE": "1e-4", "PATH": "/bin"}
    config, provenance = profiles.resolve("honours: [BATCH_SIZE]\n", env)
    assert config.train.per_device_batch_size == 8
    assert config.optim.learning_rate == 2e-5
    assert provenance["optim.learning_rate"] == "default"
    assert provenance.ignored == ("LEARNING_RATE",)


def test_the_launch_contract_is_always_honoured(profiles: ProfileFolder) -> None:
    env = {"NNODES": "2", "NPROC_PER_NODE": "4", "MASTER_PORT": "37200"}
    config, provenance = profiles.resolve("", env)
    assert (config.parallel.nodes, config.parallel.ranks_per_node) == (2, 4)
    assert config.parallel.master_port == 37200
    assert provenance["parallel.nodes"] == "environment NNODES"
    assert provenance.ignored == ()


def test_empty_variables_count_as_unset(profiles: ProfileFolder) -> None:
    env = {"BATCH_SIZE": "", "NNODES": "", "SEED": "", "TATARA__TRAIN__EPOCHS": ""}
    config, provenance = profiles.resolve("honours: [BATCH_SIZE]\n", env)
    assert config == profiles.resolve("honours: [BATCH_SIZE]\n")[0]
    assert provenance.ignored == ()


def test_every_short_name_leads_to_a_setting_that_it_can_set(profiles: ProfileFolder) -> None:
    values = {"USE_WANDB": "true", "LEARNING_RATE": "3e-4", "NNODES": "3"}
    values |= {"PUSH_TO_HUB": "false", "GRADIENT_CHECKPOINTING": "true"}
    for name, setting in (SHORT_NAMES | CONTRACT).items():
        value = values.get(name, "2000")
        honours = f"honours: [{name}]\n" if name in SHORT_NAMES else ""
        config, provenance = profiles.resolve(honours, {name: value})
        assert provenance[setting] == f"environment {name}"
        as_flag, _ = profiles.resolve(honours, {}, [f"--{name.lower()}", value])
        assert leaves(as_flag)[setting] == leaves(config)[setting] != ""


def test_a_bad_environment_value_names_the_variable(profiles: ProfileFolder) -> None:
    said = profiles.refused("honours: [BATCH_SIZE]\n", {"BATCH_SIZE": "many"})
    assert said.startswith("environment BATCH_SIZE: train.per_device_batch_size: ")
    assert "'many'" in said
    assert profiles.refused("", {"NNODES": "0"}).startswith("environment NNODES: parallel.nodes: ")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TATARA__OPTIM__LERNING_RATE", "did you mean 'learning_rate'?"),
        ("TATARA__OPTIN__LEARNING_RATE", "did you mean 'optim'?"),
        ("TATARA__OPTIM", "'optim' is a group of settings; name one inside it"),
        ("TATARA__OPTIM__LEARNING_RATE__X", "'optim.learning_rate' has nothing inside it"),
    ],
)
def test_a_misspelt_exact_name(name: str, expected: str, profiles: ProfileFolder) -> None:
    said = profiles.refused("", {name: "1"})
    assert said.startswith(f"environment {name}: ") and expected in said


# The command line

HONOURS = "honours: [BATCH_SIZE, LEARNING_RATE, USE_WANDB]\n"


@pytest.mark.parametrize(
    "words",
    [
        ["train.per_device_batch_size=16"],
        ["--train.per_device_batch_size", "16"],
        ["--train.per_device_batch_size=16"],
        ["--batch_size", "16"],
        ["--batch-size", "16"],
        ["--batch_size=16"],
        ["--use_wandb", "--batch_size", "16"],
        ["--batch_size", "1", "--batch_size", "16"],
    ],
)
def test_ways_to_write_one_setting(words: list[str], profiles: ProfileFolder) -> None:
    assert profiles.resolve(HONOURS, {}, words)[0].train.per_device_batch_size == 16


def test_overrides_as_a_mapping(profiles: ProfileFolder) -> None:
    config, provenance = profiles.resolve(
        "", {}, {"optim.learning_rate": 1e-4, "model.fallbacks": ["a/b"], "train.seed": "9"}
    )
    assert (config.optim.learning_rate, config.train.seed) == (1e-4, 9)
    assert config.model.fallbacks == ("a/b",)
    assert provenance["train.seed"] == "command line train.seed"


def test_lists_and_mappings_on_the_command_line(profiles: ProfileFolder) -> None:
    words = ["adapter.targets=[q_proj, v_proj]", "data.columns.question=Frage"]
    config, _ = profiles.resolve("", {}, words)
    assert config.adapter.targets == ("q_proj", "v_proj")
    assert config.data.columns == {"question": "Frage"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--use_wandb"], "online"),
        (["--use_wandb", "true"], "online"),
        (["--use_wandb", "false"], "off"),
        (["--use_wandb", "1"], "online"),
        (["--use_wandb", "0"], "off"),
        (["--use_wandb", "offline"], "offline"),
        (["--use_wandb", "train.seed=1"], "online"),
    ],
)
def test_a_flag_without_a_value(words: list[str], expected: str, profiles: ProfileFolder) -> None:
    assert profiles.resolve(HONOURS, {}, words)[0].tracking.wandb == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # G-F13: flags of other trainers.
        (["--deepspeed", "ds.json"], "expected ds.json, found none"),
        (["--report_to", "wandb"], "write tracking.wandb=online or tracking.tensorboard=true"),
        (["--attn_implementation", "sdpa"], "write model.attention=…"),
        (["--use_qlora"], "unknown flag '--use_qlora'; write adapter.method=qlora"),
        (["model.load_in_8bit=true"], "write adapter.method=qlora adapter.quantisation=int8"),
        (["model.device_map=auto"], "write parallel.strategy=fsdp2"),
        (["--lerning_rate", "1"], "unknown flag '--lerning_rate'; did you mean '--learning_rate'?"),
        (["learning_rate"], "expected NAME=VALUE or --name VALUE, found 'learning_rate'"),
        (["optim.lr=1"], "command line optim.lr: unknown setting 'optim.lr'"),
        (["optim=1"], "command line optim: 'optim' is a group of settings"),
        (["optim.learning_rate=fast"], "command line optim.learning_rate: optim.learning_rate: "),
        (["train.seed="], "found None"),
        (["--lora_rank", "4"], "does not honour --lora_rank; write adapter.r="),
        (["--batch_size", "0"], "command line --batch_size: train.per_device_batch_size: "),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], expected: str, profiles: ProfileFolder
) -> None:
    assert expected in profiles.refused(HONOURS, {}, words)


# extends


def test_a_profile_extends_another(profiles: ProfileFolder) -> None:
    profiles.write(BASE + "train: {seed: 1, epochs: 2}\n", "base/base.yaml")
    path = profiles.write("extends: base/base.yaml\ntrain: {seed: 3}\n", "child.yaml")
    config, provenance = resolve(path, {})
    assert (config.name, config.train.seed, config.train.epochs) == ("child", 3, 2)
    assert provenance["train.seed"] == f"{path}:2:15"
    assert provenance["train.epochs"] == f"{profiles.folder}/base/base.yaml:6:26"


def test_the_chain_is_relative_to_each_file(profiles: ProfileFolder) -> None:
    profiles.write(BASE, "a/b/base.yaml")
    profiles.write("extends: b/base.yaml\noptim: {beta2: 0.95}\n", "a/middle.yaml")
    path = profiles.write("extends: a/middle.yaml\n", "child.yaml")
    config, _ = resolve(path, {})
    assert (config.optim.beta2, config.model.name) == (0.95, "owner/model")


def test_mistakes_in_what_is_extended_name_that_file(profiles: ProfileFolder) -> None:
    base = profiles.write(BASE + "trian: {}\n", "base.yaml")
    path = profiles.write("extends: base.yaml\n", "child.yaml")
    with pytest.raises(UserError) as caught:
        resolve(path, {})
    assert str(caught.value).startswith(
        f"{base}:6:1: unknown setting 'trian'; did you mean 'train'"
    )


def test_extends_in_a_circle_or_of_nothing(profiles: ProfileFolder) -> None:
    profiles.write("extends: two.yaml\n", "one.yaml")
    profiles.write("extends: one.yaml\n", "two.yaml")
    with pytest.raises(UserError, match="extends itself"):
        resolve(profiles.path, {})
    profiles.write("extends: none.yaml\n")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        resolve(profiles.path, {})


# The result


def test_the_config_is_frozen(profiles: ProfileFolder) -> None:
    config, _ = profiles.resolve()
    for target, name in [(config, "name"), (config.train, "seed"), (config.model, "name")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, name, "other")
    with pytest.raises(ValidationError, match="frozen"):
        config.extra = 1
    assert isinstance(config.model.fallbacks, tuple)


def test_resolving_changes_neither_environment_nor_overrides(profiles: ProfileFolder) -> None:
    env, words = {"NNODES": "2"}, ["--use_wandb", "train.seed=1"]
    first = profiles.resolve(HONOURS, env, words)[0]
    assert (env, words) == ({"NNODES": "2"}, ["--use_wandb", "train.seed=1"])
    assert profiles.resolve(HONOURS, env, words)[0] == first


def test_a_dump_is_read_back(profiles: ProfileFolder) -> None:
    config, _ = profiles.resolve("adapter: {method: lora}\n", {}, ["optim.learning_rate=1e-6"])
    dump = profiles.folder / "config.json"
    dump.write_text(json.dumps({"config": config.model_dump(mode="json")}))
    assert load_dump(dump, 1) == config


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        ("", "expected JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("{}", "expected the config of a run"),
        ('{"config": []}', "expected the config of a run"),
        ('{"config": {"workload": "llm"}}', "expected the config of a run"),
        ('{"config": {"workload": "x"}}', "expected the config of a run"),
        ('{"config": {"workload": []}}', "expected the config of a run"),
        ('{"format": 99, "config": {}}', "expected format 1 or older, found 99"),
        ('{"format": "x", "config": {}}', "expected format 1 or older, found 'x'"),
    ],
)
def test_a_dump_that_is_none_is_refused(damaged: str, found: str, profiles: ProfileFolder) -> None:
    """O-A14c: whatever the file holds, a sentence names it."""
    dump = profiles.folder / "config.json"
    dump.write_text(damaged)
    with pytest.raises(UserError, match=rf"config\.json.*{found}"):
        load_dump(dump, 1)


@pytest.mark.parametrize("name", ["evaluation.task", "evaluation.every_steps", "train.max_steps"])
def test_a_setting_that_may_be_null_says_so(name: str, profiles: ProfileFolder) -> None:
    """O-A14d: who writes none learns the word that switches a setting off."""
    assert " or null, found 'none'" in profiles.refused("", {}, [f"{name}=none"])
    assert "null" not in profiles.refused("", {}, ["train.seed=none"])


def test_accumulation_follows_from_the_global_batch(profiles: ProfileFolder) -> None:
    config, _ = profiles.resolve("train: {per_device_batch_size: 4, global_batch_size: 32}\n")
    assert [config.accumulation_steps(world) for world in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(UserError, match="multiple of 12 .*found 32; set it to 24"):
        config.accumulation_steps(3)
    with pytest.raises(UserError, match="set it to 64"):
        config.accumulation_steps(16)
    assert profiles.resolve()[0].accumulation_steps(5) == 1


def test_what_auto_stands_for(profiles: ProfileFolder) -> None:
    full, _ = profiles.resolve()
    lora, _ = profiles.resolve("adapter: {method: lora}\n")
    assert [full.strategy(1), full.strategy(2)] == ["single", "fsdp2"]
    assert [lora.strategy(1), lora.strategy(2)] == ["single", "ddp"]
    assert profiles.resolve("parallel: {strategy: ddp}\n")[0].strategy(2) == "ddp"
    assert [full.ranks_per_node(0), full.ranks_per_node(4)] == [1, 4]
    assert profiles.resolve("parallel: {ranks_per_node: 2}\n")[0].ranks_per_node(4) == 2


def test_the_profiles_of_the_project() -> None:
    found = sorted((ROOT / "profiles").rglob("*.yaml"))
    assert found
    for path in found:
        config, _ = resolve(path, {})
        assert config.workload in WORKLOADS
        assert set(config.honours) <= set(SHORT_NAMES)
        assert config.summary


def test_no_training_library_is_loaded(profiles: ProfileFolder) -> None:
    profiles.write(BASE)
    code = (
        "import sys; from workloads.config.merge import resolve\n"
        f"resolve({str(profiles.path)!r}, {{}}, ['tracking.wandb=online'])\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("method", "rate"), [("lora", 3e-4), ("qlora", 2e-4)])
def test_a_method_brings_its_own_learning_rate(
    method: str, rate: float, profiles: ProfileFolder
) -> None:
    config, provenance = profiles.resolve(f"adapter: {{method: {method}}}\n")
    assert config.optim.learning_rate == rate
    assert provenance["optim.learning_rate"] == f"default of adapter.method={method}"
    said = f"adapter: {{method: {method}}}\noptim: {{learning_rate: 1e-3}}\n"
    assert profiles.resolve(said)[0].optim.learning_rate == 1e-3
    word = profiles.resolve("", {}, [f"adapter.method={method}"])[0]
    assert word.optim.learning_rate == rate
    env = {"TATARA__OPTIM__LEARNING_RATE": "2e-3"}
    assert profiles.resolve("", env, [f"adapter.method={method}"])[0].optim.learning_rate == 2e-3


def test_a_wrong_method_is_still_named(profiles: ProfileFolder) -> None:
    assert "adapter.method" in profiles.refused("adapter: {method: [lora]}\n")
    assert "adapter.method" in profiles.refused("adapter: {method: dora}\n")
