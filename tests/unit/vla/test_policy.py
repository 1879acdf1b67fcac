"""A policy at work sees what training saw, and says what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_policy import episodes, policy_folder, statistics, tiny_model
from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.vla.actions import unnormalize
from workloads.vla.data.prepare import open_sources
from workloads.vla.data.steps import Collate, Maker, Steps
from workloads.vla.openvla.config import OftSpec
from workloads.vla.openvla.loading import image_processor
from workloads.vla.openvla.policy import OpenVLAPolicy
from workloads.vla.openvla.tokenizer import LlamaTokenizer
from workloads.vla.policy import Observation, Policy

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "data/demo/tiny-openvla"
CHUNK = OftSpec(action_dim=8, action_chunk=4, proprio_dim=8)
GREY = np.full((30, 40, 3), 128, np.uint8)


def quiet(text: str) -> None:
    pass


def loaded(folder: Path, **options: Any) -> Policy:
    return Policy.from_pretrained(folder, device="cpu", report=quiet, **options)


def seen(*, instruction: str = "take the cube", **more: Any) -> Observation:
    return Observation({"primary": GREY}, instruction, **more)


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("kind", ["tokens", "oft"])
def test_serving_equals_training_without_augmentation(
    tmp_path: Path, kind: str, augmented: bool
) -> None:
    cameras = ("primary", "wrist")
    words = {
        "data.source": str(episodes(tmp_path / "logs", cameras=cameras)),
        "data.cameras": "[primary,wrist]",
        "data.augmentation.enabled": augmented,
        "action_head.kind": kind,
        "action_head.chunk": 4,
    }
    config, _ = resolve(ROOT / "profiles/recipes/vla-tiny.yaml", {}, words)
    sources = open_sources(config, None, lambda: None)
    area = config.data.augmentation.served_area
    oft = CHUNK if kind == "oft" else None
    folder = tmp_path / "model"
    policy_folder(folder, sources.statistics, oft=oft, cameras=cameras, crop_area=area)
    policy = loaded(folder)
    maker = Maker(
        image_processor(TINY),
        LlamaTokenizer(TINY),
        policy.model.action_tokenizer,
        sources.statistics,
        config.data.augmentation,
        config.chunk,
        kind == "oft",
    )
    steps = Steps(sources.train, maker, 7, varied=False)
    part = sources.train[0]
    rows = [steps[at] for at in (0, 6)]
    observations = []
    for row, at in zip(rows, (0, 6), strict=True):
        number, step = (int(value) for value in part.places[at])
        episode = part.dataset[number]
        images = {name: episode.image(name, step) for name in cameras}
        one = Observation(images, episode.instruction, episode.states[step])
        observations.append(one)
        inputs = policy.inputs(one)
        assert np.array_equal(inputs["pixel_values"], row["pixel_values"])
        prompt = len(inputs["input_ids"])
        assert inputs["input_ids"].tolist() == row["input_ids"][:prompt].tolist()
        assert (row["labels"][:prompt] == -100).all() and (row["labels"][prompt:] != -100).all()
        if kind == "oft":
            assert np.array_equal(inputs["proprio"], row["proprio"])
    actions = policy.act(observations)
    assert np.ptp(actions, axis=0).max() > 0.01, "what is seen makes a difference"
    assert actions.shape == (2, 4 if kind == "oft" else 1, 8)
    assert np.allclose(actions, trained_path(policy, rows, kind), atol=1e-5)


@torch.no_grad()
def trained_path(policy: Policy, rows: list[dict[str, Any]], kind: str) -> np.ndarray:
    """Actions as the training's forward pass predicts them, a collated batch for the OFT head and
    for tokens a growing text, since each depends on those before it."""
    collate = Collate(32000, policy.model.spec.patches * 2, kind == "oft")
    names = ("pixel_values", "input_ids", "attention_mask", "labels")
    stats = policy.model.norm_stats["crane_x7"]["action"]
    if kind == "oft":
        batch = collate(rows)
        output = policy.model(**{name: batch[name] for name in (*names, "actions", "proprio")})
        return unnormalize(output.predicted_actions.double().numpy(), stats, epsilon=1e-8)
    found = []
    for row in rows:
        batch = collate([row])
        prompt = int((batch["labels"] == -100).sum())
        for at in range(8):
            logits = policy.model(**{name: batch[name] for name in names}).logits
            patches = logits.shape[1] - batch["input_ids"].shape[1]
            chosen = logits[0, patches + prompt + at - 1].argmax()
            batch["input_ids"][0, prompt + at] = chosen
        ids = batch["input_ids"][0, prompt : prompt + 8].numpy()
        found.append(unnormalize(policy.model.action_tokenizer.decode(ids), stats)[None])
    return np.stack(found)


def test_prompts_of_any_length_and_order_make_one_batch(tmp_path: Path) -> None:
    policy = loaded(policy_folder(tmp_path / "model", oft=CHUNK))
    texts = ["take it", "put the red cube into the box", "push it", "open the drawer slowly now"]
    some = [
        Observation({"primary": np.full((20, 20, 3), 60 * at, np.uint8)}, text, np.zeros(8))
        for at, text in enumerate(texts)
    ]
    together = policy.act(some)
    assert together.shape == (4, 4, 8)
    for observation, expected in zip(some, together, strict=True):
        assert np.allclose(policy.act([observation])[0], expected, atol=1e-5)


def test_the_crop_of_the_training_is_the_crop_of_serving(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    policy = loaded(policy_folder(tmp_path / "model"))
    whole = policy.processor(image)
    found = policy.inputs(Observation({"primary": image}, "go"))["pixel_values"]
    assert policy.crop_area == 0.9 and not np.array_equal(found, whole)
    # The published checkpoint says nothing of itself: it is served as its own server does.
    (tmp_path / "model/tatara.json").unlink()
    plain = loaded(tmp_path / "model")
    found = plain.inputs(Observation({"primary": image}, "go"))["pixel_values"]
    assert np.array_equal(found, whole)


def test_an_adapter_is_served_over_its_base(tmp_path: Path) -> None:
    import json

    from peft import LoraConfig, get_peft_model

    base = policy_folder(tmp_path / "base")
    model = tiny_model()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(1)
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, generator=generator)
    folder = tmp_path / "adapter"
    wrapped.save_pretrained(folder)
    names = ("dataset_statistics.json", "preprocessor_config.json", "tokenizer.json")
    for name in names:
        (folder / name).write_bytes((base / name).read_bytes())
    facts = {"kind": "adapter", "base": str(base), "adapter": "default", "crop_area": 0.9}
    (folder / "tatara.json").write_text(json.dumps(facts))
    inner = wrapped.get_base_model()
    inner.norm_stats = statistics()
    expected = OpenVLAPolicy(inner, image_processor(TINY), LlamaTokenizer(TINY), crop_area=0.9)
    random = np.random.default_rng(2)
    some = [
        Observation({"primary": random.integers(0, 256, (40, 50, 3), np.uint8)}, "take it")
        for _ in range(8)
    ]
    found = loaded(folder).act(some)
    assert np.array_equal(found, expected.act(some))
    assert not np.array_equal(found, loaded(base).act(some))


@pytest.mark.parametrize(
    ("observation", "key", "sentence"),
    [
        (seen(state=np.zeros(8)), "bridge", "found 'bridge'; known: crane_x7, other"),
        (seen(state=np.zeros(8)), None, "choose one of: crane_x7, other"),
        (seen(instruction="  ", state=np.zeros(8)), "other", "expected an instruction"),
        (Observation({"left": GREY}, "go", np.zeros(8)), "other", "found none of primary"),
        (seen(), "other", "expected a state of 8 numbers, the robot's own, found none"),
        (seen(state=np.zeros(7)), "other", r"found shape \[7\]"),
        (seen(state=np.full(8, np.nan)), "other", "not finite"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path_factory: pytest.TempPathFactory, observation: Observation, key: str, sentence: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "two_sets"
    if not folder.exists():
        policy_folder(folder, statistics(("crane_x7", "other")), oft=CHUNK)
    with pytest.raises(UserError, match=sentence):
        loaded(folder).act([observation], key)
