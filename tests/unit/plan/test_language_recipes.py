"""Recipes for language models: parsed, checked, and planned as their comments say."""

from pathlib import Path

import pytest

from workloads import check
from workloads.config.merge import resolve
from workloads.plan.models import known_models
from workloads.plan.recipes import plan_comment

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(
    [*Path("profiles/recipes").glob("ja-*.yaml"), *Path("profiles/recipes").glob("llm-*")]
)
RATES = {"full": 2e-5, "lora": 3e-4, "qlora": 2e-4}


@pytest.fixture(autouse=True)
def at_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_is_a_recipe_for_every_model_and_method() -> None:
    names = {path.stem for path in RECIPES}
    models = ("stablelm-3b", "elyza-8b", "deepseek-32b")
    wanted = {f"ja-{model}-{method}" for model in models for method in RATES}
    wanted |= {f"llm-{method}" for method in RATES} | {"ja-13b-2x24gb", "ja-32b-2x24gb"}
    assert names == wanted


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_its_comment_is_the_plan(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment is renewed by `python scripts/reference_docs.py`."""
    assert plan_comment(path) in path.read_text().splitlines()
    config, provenance = resolve(path, {})
    assert config.model.name in {model.id for model in known_models()}
    method = config.adapter.method
    assert config.optim.learning_rate == RATES[method]
    source = "default" if method == "full" else f"default of adapter.method={method}"
    assert provenance["optim.learning_rate"] == source
    monkeypatch.setattr("workloads.device.gpus", lambda env: ())
    env = {"TATARA_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    findings = check.shallow(config, env, provenance)
    # Without GPU, hub or space for a model of 32B: what is left are mistakes in the recipe.
    machine = {"disk", "memory", "compute", "model.name", "packages", "outputs"}
    wrong = [
        finding.line()
        for finding in findings
        if finding.level == "error" and finding.name not in machine
    ]
    assert wrong == []


def test_cards_that_the_names_promise_are_those_planned() -> None:
    for name in ("ja-13b-2x24gb", "ja-32b-2x24gb"):
        assert "of each of 2 GPUs, so cards of 24 GB" in plan_comment(
            Path(f"profiles/recipes/{name}.yaml")
        )
