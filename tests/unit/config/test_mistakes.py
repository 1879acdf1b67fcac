"""What is said about mistakes in profiles, and how their values are read."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.profile_folder import BASE, ProfileFolder
from workloads.config.merge import resolve
from workloads.config.yaml_source import parse_scalar
from workloads.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def profiles(tmp_path: Path) -> ProfileFolder:
    return ProfileFolder(tmp_path)


# Mistakes in a profile, with their place


@pytest.mark.parametrize(
    ("more", "place", "expected"),
    [
        (
            "optim:\n  lerning_rate: 1\n",
            "7:3",
            "'optim.lerning_rate'; did you mean 'learning_rate'",
        ),
        ("optin: {}\n", "6:1", "unknown setting 'optin'; did you mean 'optim'?"),
        ("zzz: 1\n", "6:1", "valid names: adapter, checkpoints, data"),
        ("optim:\n  learning_rate: fast\n", "7:18", "optim.learning_rate: "),
        ("optim: {beta1: 1}\n", "6:16", "less than 1, found 1"),
        ("train: {epochs: true}\n", "6:17", "expected a number, found True"),
        ("train: 5\n", "6:8", "train expects a mapping"),
        ("train: [1]\n", "6:8", "train expects a mapping"),
        ("train:\n", "6:7", "train expects a mapping"),
        ("adapter:\n  targets:\n    - q_proj\n    - [v]\n", "9:7", "adapter.targets.1: "),
        ("tracking: {wandb: always}\n", "6:19", "'off', 'online' or 'offline', found 'always'"),
        ("name: [a]\n", "6:7", "name: "),
        (
            "parallel: {ranks_per_node: 0}\n",
            "6:28",
            "parallel.ranks_per_node: input should be greater than or equal to 1 or 'auto', found",
        ),
        ("honours: SEED\n", "6:10", "honours expects a list"),
        ("adapter: {targets: 5}\n", "6:20", "adapter.targets: input should be a"),
        ("train: {seed: 1, seed: 2}\n", "6:18", "'seed' is set twice, first at"),
        ("model: {name: b}\n", "6:1", "'model' is set twice, first at"),
        ("train: {seed: 1\n", "7:1", "not valid YAML"),
        ("\ttrain: 1\n", "6:1", "not valid YAML"),
        ("---\nname: two\n", "6:1", "not valid YAML"),
    ],
)
def test_the_place_of_a_mistake(
    more: str, place: str, expected: str, profiles: ProfileFolder
) -> None:
    said = profiles.refused(more)
    assert said.startswith(f"{profiles.path}:{place}: ") and expected in said


def test_all_wrong_values_are_told_at_once(profiles: ProfileFolder) -> None:
    said = profiles.refused("optim: {learning_rate: 7, beta1: 2}\ntrain: {seed: -1}\n").splitlines()
    assert [line.split(": ")[1] for line in said] == [
        "optim.learning_rate", "optim.beta1", "train.seed",
    ]  # fmt: skip


def test_a_rule_over_a_group_points_at_the_group(profiles: ProfileFolder) -> None:
    text = BASE.replace("owner/model", "owner/model\n  trust_remote_code: true")
    said = profiles.refused_file(text)
    assert said.startswith(f"{profiles.path}:2:1: model: trust_remote_code needs a full 40-digit")
    columns = BASE + "  columns: {qestion: Q}\n"
    assert "remove 'qestion'" in profiles.refused_file(columns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1:1: expected a mapping of settings"),
        ("- workload\n", ":1:1: expected a mapping of settings"),
        ("model: {name: a}\n", ":1:1: `workload` is missing; add one of: llm"),
        ("workload: lm\n", ":1:11: unknown workload 'lm'; did you mean 'llm'?"),
        ("workload: llm\nmodel: {name: a}\n", "data is missing; set it in the profile"),
        ("workload: llm\nmodel: {}\ndata: {source: a}\n", "model is missing; set it"),
    ],
)
def test_what_a_profile_must_have(text: str, expected: str, profiles: ProfileFolder) -> None:
    assert expected in profiles.refused_file(text)


def test_files_that_cannot_be_read(profiles: ProfileFolder) -> None:
    for path, expected in [
        (profiles.folder / "none.yaml", "no such file"),
        (profiles.folder, "cannot be read"),
    ]:
        with pytest.raises(UserError, match=expected):
            resolve(path, {})
    profiles.path.write_bytes(b"workload: \xff\n")
    with pytest.raises(UserError, match="cannot be read as text: .*; save it as UTF-8"):
        resolve(profiles.path, {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workload：llm\nmodel: {name: a}\n", "; line 1 has a wide colon: write a colon"),
        ("workload：llm\n", "; line 1 has a wide colon"),
        (
            "# 設定：\nworkload: llm\nmodel:\n　name: a\n",
            "; line 4 begins with a wide blank: write",
        ),
        ("workload: llm\nmodel:\n\tname: a\n", "; line 3 begins with a tab: write blanks"),
    ],
)
def test_marks_of_an_input_method_are_named(text: str, told: str, profiles: ProfileFolder) -> None:
    assert told in profiles.refused_file(text)


def test_wide_marks_in_texts_are_no_mistake(profiles: ProfileFolder) -> None:
    text = (
        "workload: llm\nmodel: {name: a}\ndata: {source: a, prompt: '質問：　{q}', answer: '{a}'}\n"
    )
    profiles.path.write_text(text, encoding="utf-8")
    assert resolve(profiles.path, {})[0].data.prompt == "質問：　{q}"


# What YAML 1.1 would have read otherwise


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E-6", 1e-6),
        ("+1e6", 1e6),
        ("1.e-6", 1e-6),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e3", -1500.0),
        ("1e", "1e"),
        ("e6", "e6"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("~", None),
        ("'1e-6'", "1e-6"),
        ("[1, two]", [1, "two"]),
        ("a: b: c", "a: b: c"),
        ("'open", "'open"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = parse_scalar(text, "here")
    assert found == value and type(found) is type(value)


def test_numbers_and_switches_of_a_profile(profiles: ProfileFolder) -> None:
    config, _ = profiles.resolve(
        "optim: {learning_rate: 1e-6, warmup_steps: .1}\n"
        "tracking: {wandb: off, wandb_project: on, wandb_entity: 007x}\n"
        "train: {compile: on, gradient_checkpointing: no, max_steps: 1e3}\n"
    )
    assert (config.optim.learning_rate, config.optim.warmup_steps) == (1e-6, 0.1)
    assert (config.tracking.wandb, config.tracking.wandb_project) == ("off", "on")
    assert config.tracking.wandb_entity == "007x"
    assert (config.train.compile, config.train.gradient_checkpointing) == (True, False)
    assert config.train.max_steps == 1000


def test_a_name_of_digits_stays_a_name(profiles: ProfileFolder) -> None:
    config, _ = profiles.resolve("name: 1234\n", {}, ["model.name=5678"])
    assert (config.name, config.model.name) == ("1234", "5678")


def test_text_keeps_its_spaces(profiles: ProfileFolder) -> None:
    text = BASE + '  prompt_suffix: " Think. ####"\n'
    profiles.write(text)
    assert resolve(profiles.path, {})[0].data.prompt_suffix == " Think. ####"


# What nobody means, and what must stay as it was written


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("honours: 5\n", id="honours is no list"),
        pytest.param("honours: &again [*again]\n", id="an alias inside itself"),
        pytest.param("[a]: b\n", id="a list as a key"),
        pytest.param("{{x}}: 1\n", id="a template left in"),
        pytest.param("summary: !env X\n", id="an unknown tag"),
        pytest.param("honours: [BATCHSIZE]\n", id="no such short name"),
        pytest.param("name: ../elsewhere\n", id="a name that leaves outputs"),
        pytest.param("train: {epochs: .inf}\n", id="epochs without end"),
    ],
)
def test_what_must_be_refused(more: str, profiles: ProfileFolder) -> None:
    assert str(profiles.path) in profiles.refused(more)


def test_the_workload_cannot_be_changed_after_its_schema_is_chosen(profiles: ProfileFolder) -> None:
    assert "workload" in profiles.refused("", {}, ["workload=vla"])


@pytest.mark.parametrize("text", ["0123456", "12e4567", "1:30", "0x1f"])
def test_text_that_looks_like_a_number_stays_as_written(text: str, profiles: ProfileFolder) -> None:
    profiles.write(BASE.replace("owner/model", f"owner/model\n  revision: {text}"))
    assert resolve(profiles.path, {})[0].model.revision == text


@pytest.mark.parametrize("text", ["#### x", "Think: step by step", "- x", "[x]"])
def test_text_from_outside_is_not_read_as_yaml(text: str, profiles: ProfileFolder) -> None:
    env = {"TATARA__DATA__PROMPT_SUFFIX": text}
    assert profiles.resolve("", env)[0].data.prompt_suffix == text


def test_a_value_inside_a_mapping_has_its_source(profiles: ProfileFolder) -> None:
    provenance = profiles.resolve("", {}, ["data.columns.question=Q"])[1]
    assert "command line" in provenance["data.columns"]


def test_a_missing_setting_points_at_its_group(profiles: ProfileFolder) -> None:
    text = BASE.replace("  name: owner/model", "  attention: sdpa")
    assert profiles.refused_file(text).startswith(f"{profiles.path}:2:1: ")
