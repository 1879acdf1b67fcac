"""A tiny OpenVLA policy on disk, as an export leaves it, and demonstrations that it fits."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workloads.data.robot.crane_x7.writer import write_episode
from workloads.data.robot.statistics import describe
from workloads.vla.model import random_init, save_pretrained
from workloads.vla.openvla.config import OftSpec
from workloads.vla.openvla.loading import image_processor
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.tokenizer import COMPANIONS

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data/demo/tiny-openvla"


def episodes(
    root: Path, count: int = 3, steps: int = 6, cameras: Sequence[str] = ("primary",)
) -> Path:
    """CRANE-X7 recordings whose pictures differ from step to step and from camera to camera."""
    for number in range(count):
        random = np.random.default_rng(number)
        states = random.uniform(-1, 1, (steps, 8)).astype(np.float32)
        images = {name: list(frames(random, steps)) for name in cameras}
        folder = root / f"episode_{number:04d}_20251210_090000"
        write_episode(folder, states, images, f"Take cube {number}")
    return root


def frames(random: np.random.Generator, steps: int) -> np.ndarray:
    """uint8 [steps, 48, 64, 3], smooth enough for JPEG."""
    coarse = random.integers(0, 256, (steps, 6, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def statistics(names: Sequence[str] = ("crane_x7",)) -> dict[str, Any]:
    values = np.random.default_rng(5).uniform(-1, 1, (200, 8))
    entry = {"action": describe(values), "proprio": describe(values)}
    return {name: entry for name in names}


def tiny_model(oft: OftSpec | None = None) -> OpenVLA:
    """Random weights whose text is always action tokens, which ones depending on what it sees."""
    model = random_init(TINY, seed=3, oft=oft)
    first, last = model.action_tokenizer.first_id, model.action_tokenizer.vocab_size
    with torch.no_grad():
        model.language_model.lm_head.weight[first:last] *= 50
    return model


def policy_folder(
    folder: Path,
    table: dict[str, Any] | None = None,
    *,
    oft: OftSpec | None = None,
    cameras: Sequence[str] = ("primary",),
    crop_area: float = 0.9,
) -> Path:
    """What `tatara export` writes of a policy that our own tools read, with random weights."""
    model = tiny_model(oft)
    model.norm_stats = table or statistics()
    save_pretrained(model, folder)
    image_processor(TINY).save_pretrained(folder)
    for name in COMPANIONS:
        if (TINY / name).is_file():
            shutil.copyfile(TINY / name, folder / name)
    (folder / "dataset_statistics.json").write_text(json.dumps(model.norm_stats))
    facts = {"kind": "model", "dtype": "float32", "cameras": list(cameras), "crop_area": crop_area}
    (folder / "tatara.json").write_text(json.dumps(facts))
    return folder
