"""Any dataset to CRANE-X7 recordings: a folder an episode, images as JPEG, colours in order."""

import os
from collections.abc import Sequence
from pathlib import Path

from workloads.data.robot.converting import (
    Converted,
    Recipe,
    prepared_episodes,
    whole_folder,
)
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.data.robot.episode import Dataset, Progress
from workloads.data.robot.lerobot.writer import rate_of
from workloads.data.tfrecord import Damage, check_budget
from workloads.errors import UserError


def to_crane_x7(
    dataset: Dataset,
    out: str | os.PathLike[str],
    *,
    fps: float | None = None,
    cameras: Sequence[str] | None = None,
    size: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write CRANE-X7 recordings of schema v2 to the folder `out`, which appears when complete.

    Arguments are those of `to_lerobot_v3`. JPEG and PNG bytes are kept where their colours are in
    order, all else becomes JPEG of quality 95. An episode is cut where records are missing. Raises
    UserError where there are no steps to convert.
    """
    rate, skipped, frames, kept = rate_of(dataset, fps), list[Damage](), 0, 0
    recipe = Recipe(tuple(cameras or dataset.cameras), size, histograms=False, jpeg=True)
    seen = int(dataset.lengths.sum()) + sum(item.lost for item in dataset.damage)
    written = 0
    with whole_folder(Path(out)) as folder:
        for number, prepared in enumerate(prepared_episodes(dataset, recipe, workers)):
            skipped += prepared.skipped
            check_budget([*dataset.damage, *skipped], seen, dataset.options.damage_budget)
            for run in prepared.runs:
                episode, steps = prepared.episode, [int(t) for t in run]
                write_episode(
                    folder / f"episode_{written:04d}",
                    episode.states[run],
                    {c: [prepared.encoded[t][c] for t in steps] for c in recipe.cameras},
                    [episode.instruction_at(t) for t in steps],
                    actions=episode.actions[run],
                    dataset_name=dataset.name,
                    fps=rate,
                )
                written, frames = written + 1, frames + len(run)
            kept += prepared.kept
            if progress is not None:
                progress(number + 1, len(dataset))
        if not written:
            raise UserError(
                f"{dataset.path}: expected steps to convert, found none; run data inspect"
            )
    return Converted(Path(out), written, frames, tuple(skipped), kept)
