"""The policies that are compared: what a run or a folder holds, and the same before training."""

from pathlib import Path

import torch

from workloads.data.robot.crane_x7.tfrecords import DATASET_NAME
from workloads.engine.export.export import SKELETON
from workloads.engine.pretrained.base import locate
from workloads.engine.pretrained.files import Tell
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.vla.config import VlaConfig
from workloads.vla.export import STATISTICS
from workloads.vla.loading import load_model, oft_spec
from workloads.vla.openvla.checkpoint import random_init
from workloads.vla.openvla.modeling import OpenVLA, action_stats
from workloads.vla.policy import Policy
from workloads.vla.reach import arm


def statistics_key(policy: Policy) -> str:
    """The policy's statistics of a CRANE-X7; UserError for another robot or several cameras."""
    keys = policy.unnorm_keys
    key = keys[0] if len(keys) == 1 else DATASET_NAME
    size = len(action_stats(policy.model.norm_stats, key)["mean"])
    if size != arm.JOINTS:
        raise UserError(
            f"expected actions of {arm.JOINTS} joints, found {size}; the simulated robot is a "
            "CRANE-X7"
        )
    if len(policy.cameras) != 1:
        raise UserError(
            f"expected a policy of one camera, found {', '.join(policy.cameras)}; the scene is "
            "seen by one"
        )
    return key


def pair(folder: Path, tell: Tell) -> tuple[Policy, Policy]:
    """The policy in an exported folder, and the same with the weights that its run began with.

    A folder without a run of ours beside it is compared with random weights of its shape. Raises
    UserError as `statistics_key`, before any weights are drawn.
    """
    trained = Policy.from_pretrained(folder, tell=tell)
    statistics_key(trained)
    run = Run(folder.parent)
    own = folder == run.final and (run.path / "manifest.json").is_file()
    model = _initial(run, tell) if own else _random(trained.model)
    device = trained.model.device
    untrained = Policy(
        model.to(device, trained.model.dtype).eval(),
        trained.processor,
        trained.tokenizer,
        trained.cameras,
        trained.crop_area,
        "untrained",
    )
    return trained, untrained


def _initial(run: Run, tell: Tell) -> OpenVLA:
    """The run's own model at step 0; an adapter changes nothing there."""
    config: VlaConfig = run.config()
    statistics = read_json(run.path / STATISTICS)
    first = next(iter(statistics.values()))
    oft = oft_spec(
        config, len(first["action"]["q01"]), len(first.get("proprio", {}).get("q01", ()))
    )
    is_random = config.model.random_init
    folder = run.path / SKELETON if is_random else locate(config.model, tell, weights=True)
    return load_model(config, folder, oft, statistics, tell)


def _random(trained: OpenVLA) -> OpenVLA:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = random_init(trained.spec.raw, 0, trained.dtype, oft=trained.oft)
    model.norm_stats = trained.norm_stats
    return model
