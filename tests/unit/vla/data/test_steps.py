"""Samples of a robot policy: split, mixed, augmented, labelled, the same for the same seed."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.robot_data import picture, vectors
from tests.support.tiny_policy import episodes
from workloads.config.merge import resolve
from workloads.data.robot import images
from workloads.data.robot.crane_x7 import writer
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.errors import UserError
from workloads.plan.recipes import fitting_recipe, recipes_of
from workloads.vla.actions import ActionTokenizer, normalize
from workloads.vla.config import Augmentation, VlaConfig
from workloads.vla.data.augment import augment, centre_crop, recoloured
from workloads.vla.data.prepare import Sources, open_sources, with_frames
from workloads.vla.data.steps import Collate, Maker, Steps
from workloads.vla.openvla.loading import image_processor
from workloads.vla.openvla.tokenizer import LlamaTokenizer

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "data/demo/tiny-openvla"
STEPS = 12


def recordings(root: Path, episodes: int = 4, seed: int = 0) -> Path:
    for number in range(episodes):
        folder = root / f"episode_{number:04d}_20251210_090000"
        frames = [picture(step) for step in range(STEPS)]
        states = vectors(STEPS, seed + number)
        write_episode(folder, states, {"primary": frames}, f"Take cube {number}")
    return root


def config_of(source: Path, **changes: object) -> VlaConfig:
    settings = {"data.source": str(source), "data.eval_share": 0.25, **changes}
    return resolve(ROOT / "profiles/recipes/vla-tiny.yaml", {}, settings)[0]


def opened(config: VlaConfig) -> Sources:
    return open_sources(config, None, lambda: None)


def maker_of(config: VlaConfig, sources: Sources, **changes: object) -> Maker:
    settings = {
        "processor": image_processor(TINY),
        "tokenizer": LlamaTokenizer(TINY),
        "actions": ActionTokenizer(32000),
        "statistics": sources.statistics,
        "augmentation": config.data.augmentation,
        "chunk": config.chunk,
    }
    return Maker(**{**settings, **changes})


def test_no_episode_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    sources = opened(config_of(recordings(tmp_path)))
    train, held_out = sources.train[0], sources.held_out[0]
    assert (len(train.episodes), len(held_out.episodes)) == (3, 1)
    assert not set(train.episodes) & set(held_out.episodes)
    # The last step's own state as its action is left out.
    assert len(train.places) == 3 * (STEPS - 1)
    assert sources.statistics["crane_x7"]["num_transitions"] == 3 * (STEPS - 1)
    assert sources.statistics["crane_x7"]["num_trajectories"] == 3


def test_labels_are_the_tokens_of_the_normalised_action(tmp_path: Path) -> None:
    config = config_of(recordings(tmp_path))
    sources = opened(config)
    part = sources.train[0]
    row = Steps(sources.train, maker_of(config, sources), 7, varied=True)[5]
    episode, step = part.places[5]
    action = part.dataset[int(episode)].actions[step]
    stats = sources.statistics["crane_x7"]["action"]
    expected = ActionTokenizer(32000).encode(normalize(action, stats))
    assert row["labels"][-9:-1].tolist() == expected.tolist()
    assert row["labels"][-1] == 2
    assert (row["labels"][:-9] == -100).all()
    assert row["pixel_values"].shape == (6, 56, 56)
    assert row["row_id"].endswith(f":{step}")


def test_a_sample_is_the_same_again_and_another_one_in_another_epoch(tmp_path: Path) -> None:
    config = config_of(recordings(tmp_path))
    sources = opened(config)
    first = Steps(sources.train, maker_of(config, sources), 7, varied=True)
    again = Steps(sources.train, maker_of(config, sources), 7, varied=True)
    assert np.array_equal(first[3]["pixel_values"], again[3]["pixel_values"])
    again.epoch = 1
    assert not np.array_equal(first[3]["pixel_values"], again[3]["pixel_values"])
    assert np.array_equal(first[3]["labels"], again[3]["labels"])


def test_weights_say_how_often_an_epoch_sees_a_step(tmp_path: Path) -> None:
    own, other = recordings(tmp_path / "a"), recordings(tmp_path / "b", seed=9)
    mixed = [{"source": str(other), "weight": 1.5, "name": "other"}]
    config = config_of(own, **{"data.mixed_with": mixed, "data.eval_share": 0})
    sources = opened(config)
    steps = Steps(sources.train, maker_of(config, sources), 7, varied=True)
    size = 4 * (STEPS - 1)
    assert len(steps) == size + round(1.5 * size)
    assert set(sources.statistics) == {"crane_x7", "other"}
    seen = [steps[number]["row_id"] for number in range(size, len(steps))]
    counts = np.unique(seen, return_counts=True)[1]
    assert sorted(counts.tolist()) == [1] * (size // 2) + [2] * (size // 2)
    steps.epoch = 1
    assert seen[size:] != [steps[number]["row_id"] for number in range(2 * size, len(steps))]


def test_chunks_end_with_the_last_action(tmp_path: Path) -> None:
    head = {"action_head.kind": "oft", "action_head.chunk": 4}
    config = config_of(recordings(tmp_path), **head)
    sources = opened(config)
    part = sources.train[0]
    steps = Steps(sources.train, maker_of(config, sources, proprio=True), 7, varied=True)
    row = steps[STEPS - 2]
    assert int(part.places[STEPS - 2][1]) == STEPS - 2
    assert row["actions"].shape == (4, 8)
    assert (row["actions"] == row["actions"][0]).all()
    batch = Collate(32000, 16, with_actions=True)([steps[0], row])
    assert batch["actions"].shape == (2, 4, 8) and batch["proprio"].shape == (2, 8)
    assert int((batch["labels"] != -100).sum()) == 2 * (4 * 8 + 1)
    assert batch["tokens"] == int(batch["attention_mask"].sum()) + 2 * 16


def test_chunks_never_cross_a_gap(tmp_path: Path) -> None:
    root = recordings(tmp_path, episodes=1)
    file = next(root.glob("*/episode_data.tfrecord"))
    from workloads.data.tfrecord import index

    offset = int(index(file).offsets[5])
    content = bytearray(file.read_bytes())
    content[offset + 40] ^= 1
    file.write_bytes(bytes(content))
    head = {"action_head.kind": "oft", "action_head.chunk": 4, "data.eval_share": 0}
    sources = opened(config_of(root, **head))
    part = sources.train[0]
    rows = part.dataset[0].rows[part.places[:, 1]].tolist()
    # Records 0-4 are before the damaged one: only 0 and 1 have four known actions.
    assert rows == [0, 1, 6, 7, 8, 9, 10]
    assert sources.damaged == 1


def test_a_picture_that_cannot_be_read_is_replaced_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = images.encode_jpeg

    def cut_short(pixels: np.ndarray, quality: int) -> bytes:
        encoded = whole(pixels, quality)
        return encoded[: len(encoded) // 2] if np.array_equal(pixels, picture(3)) else encoded

    monkeypatch.setattr(writer, "encode_jpeg", cut_short)
    frames = [picture(step) for step in range(STEPS)]
    folder = tmp_path / "episode_0000_20251210_090000"
    write_episode(folder, vectors(STEPS), {"primary": frames}, "Take it")
    config = config_of(tmp_path, **{"data.eval_share": 0})
    sources = opened(config)
    row = Steps(sources.train, maker_of(config, sources), 7, varied=True)[3]
    assert row["row_id"].endswith(":4")
    assert [item.record for item in row["damage"]] == [3]
    assert row["damage"][0].trouble == "bad_image"


def test_recolouring_is_that_of_hsv() -> None:
    values = np.random.default_rng(0).random((9, 9, 3)).astype(np.float32)
    values[0, 0], values[1, 1], values[2, 2] = 0, 0.5, 1
    found = recoloured(values, 1.2, -0.05)
    for place in np.ndindex(9, 9):
        hue, share, value = colorsys.rgb_to_hsv(*map(float, values[place]))
        expected = colorsys.hsv_to_rgb((hue - 0.05) % 1, min(1, share * 1.2), value)
        assert found[place] == pytest.approx(expected, abs=2e-6)


def test_crops_keep_nine_tenths_of_the_area() -> None:
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8)[None, :, None], (224, 224, 3)).copy()
    cropped = centre_crop(ramp, 0.9)
    assert cropped.shape == ramp.shape
    width = int(cropped[0, -1, 0]) - int(cropped[0, 0, 0])
    assert width == pytest.approx(224 * np.sqrt(0.9), abs=2)
    nothing = Augmentation(crop_area=1, brightness=0, contrast=0, saturation=0, hue=0)
    assert np.array_equal(augment(ramp, nothing, np.random.default_rng(0)), ramp)


def test_mistakes_are_named(tmp_path: Path) -> None:
    root = recordings(tmp_path, episodes=2)
    with pytest.raises(UserError, match="cameras.*primary"):
        opened(config_of(root, **{"data.cameras": ["wrist"]}))
    with pytest.raises(UserError, match="expected 8 values"):
        opened(config_of(root, **{"data.action_mask": [True, False]}))
    file = tmp_path / "stats.json"
    numbers = {name: [0.0] * 8 for name in ("min", "max", "q01", "q99")}
    own = {"data.statistics": str(file)}
    file.write_text(json.dumps({"crane_x7": {"action": numbers, "proprio": {"min": [0.0]}}}))
    with pytest.raises(UserError, match=r"crane_x7\.proprio\.max: expected a list of numbers"):
        opened(config_of(root, **own))
    short = {name: [0.0] * 7 for name in numbers}
    file.write_text(json.dumps({"crane_x7": {"action": short, "proprio": short}}))
    with pytest.raises(UserError, match=r"action\.min: expected 8 numbers.*found 7; name the data"):
        opened(config_of(root, **own))
    file.write_text(json.dumps({"crane_x7": {"action": numbers, "proprio": short}}))
    assert opened(config_of(root, **own)).statistics["crane_x7"]["proprio"] == short
    with pytest.raises(UserError, match=r"proprio\.min: expected 8 numbers"):
        opened(config_of(root, **own, **{"action_head.kind": "oft"}))
    with pytest.raises(UserError, match="data.action_mask: expected none beside data.statistics"):
        opened(config_of(root, **own, **{"data.action_mask": [True] * 8}))
    for key, value, words in (
        ("q01", [None] * 8, "q01: expected finite numbers, found None"),
        ("q99", [float("nan")] * 8, "q99: expected finite numbers, found nan"),
        ("mask", [False], "mask: expected 8 numbers"),
    ):
        odd = {"action": numbers | {key: value}, "proprio": numbers}
        file.write_text(json.dumps({"crane_x7": odd}))
        with pytest.raises(UserError, match=words):
            opened(config_of(root, **own))
    with pytest.raises(UserError, match="never runs code"):
        config_of(root, **{"model.trust_remote_code": True, "model.revision": "a" * 40})
    with pytest.raises(UserError, match="ddp"):
        config_of(root, **{"adapter.method": "lora", "parallel.strategy": "fsdp2"})


RECIPES = recipes_of(ROOT / "profiles/vla.yaml")


@pytest.mark.parametrize(("gib", "name"), [(15, "16gb"), (23.5, "24gb"), (39.4, "40gb")])
def test_recipes_fit_what_they_are_named_after(gib: float, name: str) -> None:
    found = fitting_recipe(int(gib * 2**30), RECIPES, folder=ROOT / "profiles/recipes")
    assert found is not None and found.stem == f"vla-{name}"


def test_no_recipe_fits_a_gpu_that_is_too_small() -> None:
    assert fitting_recipe(4 * 2**30, RECIPES, folder=ROOT / "profiles/recipes") is None


@pytest.mark.parametrize("cameras", [("primary",), ("wrist", "primary")])
def test_samples_with_kept_frames_are_bit_equal(tmp_path: Path, cameras: tuple[str, ...]) -> None:
    """Augmentation stays random by (seed, epoch, number); only decoding is left out."""
    root = episodes(tmp_path / "logs", count=3, cameras=("primary", "wrist"))
    config = config_of(root, **{"data.cameras": list(cameras), "data.cache_frames": True})
    plain = opened(config)
    maker = maker_of(config, plain)
    kept, said = with_frames(plain, config, maker.processor, tmp_path / "frames")
    assert "epochs after the first read them there" in said[0]
    for epoch in range(3):
        for parts, others, varied in (
            (plain.train, kept.train, True), (plain.held_out, kept.held_out, False),
        ):  # fmt: skip
            expected, found = Steps(parts, maker, 7, varied), Steps(others, maker, 7, varied)
            expected.epoch = found.epoch = epoch
            for number in range(len(expected)):
                a, b = expected[number], found[number]
                assert a["row_id"] == b["row_id"]
                assert np.array_equal(a["pixel_values"], b["pixel_values"])
    frames = kept.train[0].frames
    assert frames is not None and frames.cache.filled == len(cameras) * 15


def test_frames_are_kept_where_they_are_asked_for_again(tmp_path: Path) -> None:
    root = episodes(tmp_path / "logs", count=3)
    for changes, is_kept in (
        ({"train.epochs": 1}, False),
        ({"train.epochs": 2}, True),
        ({"train.max_steps": 2, "train.per_device_batch_size": 2}, False),
        ({"train.max_steps": 20, "train.per_device_batch_size": 2}, True),
        ({"train.epochs": 2, "data.cache_frames": False}, False),
        ({"train.epochs": 1, "data.cache_frames": True}, True),
    ):
        config = config_of(root, **changes)
        sources = opened(config)
        processor = maker_of(config, sources).processor
        found, _ = with_frames(sources, config, processor, tmp_path / "frames")
        assert (found.train[0].frames is not None) == is_kept, changes
