"""What a generation engine is given, with a stand-in for vLLM."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from trl.generation.vllm_client import VLLMClient

from workloads.config.merge import resolve
from workloads.errors import Retry, TataraError, UserError
from workloads.grpo import trl_hooks
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import _limits
from workloads.grpo.rollouts import engine as generation
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit

IMAGE, VIDEO = 7, 8


def profile(*words: str) -> GrpoConfig:
    config, _ = resolve("profiles/grpo-h100.yaml", {}, list(words))
    assert isinstance(config, GrpoConfig)
    return config


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
    config = profile(f"generation.engine={engine}")
    found = generation.arguments(config, ["<image>"])
    assert found["generation_kwargs"] == {"bad_words": ["<image>"]}
    assert generation.arguments(config, [])["generation_kwargs"] is None


def test_the_engine_beside_the_trainer_is_made_as_the_profile_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL makes it without the profile's pixels, asks for sleep level 2, and keeps seen images."""
    seen: list[Any] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            seen.append(options)

        def sleep(self, level: int) -> None:
            seen.append(level)

        def reset_prefix_cache(self) -> None:
            seen.append("prefixes")

        llm_engine = SimpleNamespace(reset_encoder_cache=lambda: seen.append("images"))

    vllm: Any = ModuleType("vllm")
    vllm.LLM = LLM
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    config = profile("generation.sleep_level=1", "grpo.max_pixels=200704")
    with generation.ready(config, Session(run=Run(tmp_path))):
        LLM(model="m").sleep(level=2)
        LLM.reset_prefix_cache(LLM(model="m"))
    LLM(model="m").sleep(level=2)
    limits = {"mm_processor_kwargs": {"max_pixels": 200704}}
    made = {"model": "m", **limits}
    assert seen == [made, 1, made, "images", "prefixes", {"model": "m"}, 2]


@pytest.mark.parametrize(("level", "told"), [(1, True), (0, False)])
def test_an_engine_that_sleeps_is_told_of_expandable_segments(
    level: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM (0.31) turns them off for its pool where it sees them under their old name."""
    vllm: Any = ModuleType("vllm")
    own = lambda self, **options: None  # noqa: E731
    vllm.LLM = type("LLM", (), {"__init__": own, "sleep": own, "reset_prefix_cache": own})
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    config = profile(f"generation.sleep_level={level}")
    with generation.ready(config, Session(run=Run(tmp_path))):
        found = os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    assert found == ("expandable_segments:True" if told else None)


def test_a_server_encodes_images_anew_with_new_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's client resets its cache of prefixes alone."""
    monkeypatch.setenv("TATARA_RENDEZVOUS_SECRET", "x" * 32)
    asked: list[str] = []
    codes = {"http://far/reset_encoder_cache": 200, "http://far/reset_prefix_cache": 200}

    def post(url: str) -> SimpleNamespace:
        asked.append(url)
        return SimpleNamespace(status_code=codes[url], json=lambda: {"success": True}, text="")

    client = VLLMClient.__new__(VLLMClient)  # without vLLM it makes none
    client.session, client.base_url = SimpleNamespace(post=post), "http://far"
    config = profile("generation.engine=vllm_server")
    with generation.ready(config, Session(run=Run(tmp_path))):
        client.reset_prefix_cache()
        assert asked == list(codes)
        codes["http://far/reset_encoder_cache"] = 404
        with pytest.raises(TataraError, match="reset_encoder_cache: expected the answer 200"):
            client.reset_prefix_cache()
    client.reset_prefix_cache()
    assert asked[3:] == ["http://far/reset_prefix_cache"]


@pytest.mark.parametrize(("engine", "kind"), [("vllm_server", Retry), ("transformers", OSError)])
def test_a_server_that_is_lost_is_worth_a_retry(engine: str, kind: type[Exception]) -> None:
    config = profile(f"generation.engine={engine}", "generation.host=far")
    with pytest.raises(kind, match="reset by peer"), generation.named_failures(config):
        raise ConnectionResetError("reset by peer")
    with pytest.raises(FileNotFoundError), generation.named_failures(config):
        raise FileNotFoundError("a file of the trainer's own")


@pytest.mark.parametrize(
    ("words", "image", "context"),
    [
        (["generation.engine=vllm_colocate", "generation.max_model_length=2000"], 4096, 2000),
        (["generation.engine=vllm_server"], None, 9000),
        (["generation.engine=transformers"], None, 9000),
        (["stage=sft", "generation.max_model_length=2000"], None, 9000),
    ],
    ids=["beside", "server", "transformers", "supervised"],
)
def test_rows_have_to_fit_into_the_engine(
    words: list[str], image: int | None, context: int
) -> None:
    found = _limits(profile(*words), {"max_position_embeddings": 9000})
    assert (found.image, found.context) == (image, context)


@pytest.mark.parametrize(
    ("engine", "images", "ids"),
    [
        ("vllm_colocate", [None, ["a"]], [[1, IMAGE, 2], [3]]),
        ("vllm_server", [None, ["a"]], [[1, IMAGE, IMAGE, 2], [3]]),
        ("transformers", [[], ["a"]], [[1, IMAGE, IMAGE, 2], [3]]),
    ],
)
def test_prompts_are_put_as_the_engine_takes_them(
    engine: str, images: list[Any], ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Any] = []
    monkeypatch.setattr(
        trl_hooks.GRPOTrainer, "_generate_single_turn", lambda self, *words: put.append(words)
    )
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda tokens: [IMAGE])
    monkeypatch.setattr(trl_hooks, "placeholders", lambda processing: ["<image>"])
    monkeypatch.setattr(trl_hooks, "tokenizer_of", lambda processing: tokenizer)
    trainer = trl_hooks.GrpoTrainer.__new__(trl_hooks.GrpoTrainer)
    trainer.profile = profile(f"generation.engine={engine}")
    trainer.processing_class = None
    trainer.session = SimpleNamespace(progress=lambda: put.append("progress"))  # type: ignore[assignment]
    trainer._generate_single_turn([[1, IMAGE, IMAGE, 2], [3]], [[], ["a"]])
    assert put == [(ids, images), "progress"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generation_kwargs={temprature: 2}", "knows no argument 'temprature'; did you mean"),
        ("generation_kwargs={stop_strings: [a]}", "stop_strings: only vLLM ends completions"),
        ("cache_implementation=foo", "Invalid `cache_implementation` \\(foo\\)"),
    ],
)
def test_arguments_of_sampling_that_transformers_would_ignore(words: str, said: str) -> None:
    """G-F11: or stumble over at the first rollout."""
    config = profile("generation.engine=transformers", f"grpo.sampling.{words}")
    with pytest.raises(UserError, match=said):
        generation.check(config, sees_images=True)


def test_arguments_of_sampling_that_transformers_knows() -> None:
    words = "grpo.sampling.generation_kwargs={typical_p: 0.9, num_beams: 2}"
    generation.check_sampling(profile(words).grpo)
