"""The compared policies: the trained one, and the same before training."""

from pathlib import Path

from workloads.data.robot.crane_x7.tfrecords import DATASET_NAME
from workloads.engine.pretrained.files import Reporter
from workloads.errors import UserError
from workloads.run import Run
from workloads.vla.policy import Policy
from workloads.vla.reach import arm


def statistics_key(policy: Policy) -> str:
    """The key of the policy's CRANE-X7 statistics.

    Raises UserError for another robot or several cameras.
    """
    keys = policy.unnorm_keys
    key = keys[0] if len(keys) == 1 else DATASET_NAME
    size = len(policy.action_statistics(key)["mean"])
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


def pair(folder: Path, report: Reporter) -> tuple[Policy, Policy]:
    """The policy in an exported folder, and the same with its run's initial weights.

    A folder without a run is compared with random weights of its shape. Raises UserError as
    `statistics_key`, before any weights are drawn.
    """
    trained = Policy.from_pretrained(folder, report=report)
    statistics_key(trained)
    run = Run(folder.parent)
    own = folder == run.final and (run.path / "manifest.json").is_file()
    return trained, trained.untrained(run if own else None, report)
