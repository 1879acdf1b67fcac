"""Measurements of earlier runs here: a card's overhead and speed, the size of a dataset.

A run writes `memory` into its manifest at its end (`engine/training/memory.py`): the card, and
allocated, reserved and process bytes as they were planned and as they were measured.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.config.sections import Profile
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.plan.cards import Card, find_card
from workloads.plan.known_shapes import UnknownShape, shape_of
from workloads.plan.row_lengths import RowLengths
from workloads.plan.speed import Utilisation, hardware_flops_per_token
from workloads.run import Run
from workloads.run.directory import rows_in

# Number of newest runs to read; older ones are from older code.
_MOST = 20


@dataclass(frozen=True)
class EarlierRun:
    """A finished run of this machine with what it measured."""

    run: Run
    manifest: Mapping[str, Any]

    @property
    def card(self) -> Card | None:
        name = self._memory.get("card")
        return find_card(name) if isinstance(name, str) else None

    @property
    def overhead(self) -> int | None:
        """Bytes of the process that torch's allocator did not reserve: CUDA, libraries, NCCL."""
        measured = self._memory.get("measured")
        if not isinstance(measured, dict):
            return None
        process, reserved = measured.get("process"), measured.get("reserved")
        if not isinstance(process, int) or not isinstance(reserved, int):
            return None
        return process - reserved

    @property
    def _memory(self) -> Mapping[str, Any]:
        memory = self.manifest.get("memory")
        return memory if isinstance(memory, dict) else {}

    @property
    def rows(self) -> int | None:
        """Training rows, as its data report counts them."""
        data = self.manifest.get("data")
        train = data.get("train") if isinstance(data, dict) else None
        rows = train.get("rows") if isinstance(train, dict) else None
        return rows if isinstance(rows, int) else None

    @property
    def lengths(self) -> RowLengths | None:
        """Lengths of its rows; None where its data report has none."""
        data = self.manifest.get("data")
        train = data.get("train") if isinstance(data, dict) else None
        if not isinstance(train, dict) or not self.rows:
            return None
        tokens, longest = train.get("tokens"), train.get("longest")
        if not isinstance(tokens, int) or not isinstance(longest, int):
            return None
        return RowLengths(tokens / self.rows, longest)

    def utilisation(self, env: Mapping[str, str]) -> Utilisation | None:
        """The share of its card's peak that it reached; None where that is unknown."""
        speeds = [row["tokens_per_second"] for row in rows_in(self.run.metrics)
                  if isinstance(row.get("tokens_per_second"), int | float)]  # fmt: skip
        card = self.card
        if card is None or len(speeds) < 3:
            return None
        try:
            config: Profile = self.run.config()
            shape, _ = shape_of(config.model, {**env, "HF_HUB_OFFLINE": "1"})
        except (UserError, UnknownShape):
            return None
        world = self._memory.get("world_size", 1)
        again = 1.0 if config.train.gradient_checkpointing else 0.0
        length = config.row_length(config.seen_shape(shape))
        is_full = config.adapter.method == "full"
        flops = hardware_flops_per_token(shape, length, is_full, again)
        share = statistics.median(speeds) / world * flops / (card.tflops * 1e12)
        name = f"run {self.run.path.parent.name}/{self.run.id}"
        return Utilisation(
            name, card.name, card.generation, config.adapter.method, share, config.train.compile
        )


def earlier_runs(outputs: Path) -> list[EarlierRun]:
    """The newest runs with a manifest, newest first."""
    manifests = outputs.glob("*/*/manifest.json")
    newest = sorted(manifests, key=lambda path: path.parent.name, reverse=True)[:_MOST]
    return list(_read(newest))


def _read(manifests: Sequence[Path]) -> Iterator[EarlierRun]:
    for path in manifests:
        try:
            yield EarlierRun(Run(path.parent), read_json(path))
        except UserError:
            continue


def overhead_of(card: Card | None, runs: Sequence[EarlierRun]) -> int | None:
    """The median overhead of runs on the same card; None where there are none."""
    found = [run.overhead for run in runs if card is not None and run.card == card]
    known = [overhead for overhead in found if overhead is not None]
    return int(statistics.median(known)) if known else None


def rows_of(config: Profile, runs: Sequence[EarlierRun]) -> tuple[int, str] | None:
    """Training rows of the newest run of this profile that has counted them, and its name."""
    for run in runs:
        if run.manifest.get("profile") == config.name and run.rows:
            return run.rows, f"run {run.run.id}"
    return None


def lengths_of(config: Profile, runs: Sequence[EarlierRun]) -> RowLengths | None:
    """Row lengths of the newest run of this profile that has counted them."""
    own = (run.lengths for run in runs if run.manifest.get("profile") == config.name)
    return next((lengths for lengths in own if lengths is not None), None)
