"""What a generation engine is given."""

import pytest

from workloads.config.merge import resolve
from workloads.grpo.config import GrpoConfig
from workloads.grpo.rollouts import engine as generation

pytestmark = pytest.mark.unit

IMAGE, VIDEO = 7, 8


def test_each_image_is_one_token_for_the_engine() -> None:
    prompts = [[1, IMAGE, IMAGE, IMAGE, 2, 2, IMAGE, 3], [IMAGE, VIDEO, VIDEO], [4, 4]]
    found = generation.one_for_each_image(prompts, [IMAGE, VIDEO])
    assert found == [[1, IMAGE, 2, 2, IMAGE, 3], [IMAGE, VIDEO], [4, 4]]


def test_images_with_nothing_between_them_are_a_token_each() -> None:
    """LLaVA's form: the placeholders of two images stand side by side."""
    beside = [1, *[IMAGE] * 32, 2, *[IMAGE] * 16]
    shown = [["a", "b", "c"], ["a", "b"], None]
    found = generation.one_for_each_image(
        [beside, [IMAGE, 2, IMAGE, IMAGE], [3, 3]], [IMAGE], shown
    )
    assert found == [[1, IMAGE, IMAGE, 2, IMAGE], [IMAGE, 2, IMAGE], [3, 3]]


@pytest.mark.parametrize("engine", ["vllm_colocate", "vllm_server"])
def test_placeholders_are_kept_out_of_completions(engine: str) -> None:
    config, _ = resolve("profiles/grpo-h100.yaml", {}, [f"generation.engine={engine}"])
    assert isinstance(config, GrpoConfig)
    found = generation.arguments(config, ["<image>"])
    assert found["generation_kwargs"] == {"bad_words": ["<image>"]}
    assert generation.arguments(config, [])["generation_kwargs"] is None
