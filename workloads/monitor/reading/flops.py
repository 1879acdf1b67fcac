"""Model FLOPs utilisation of a running job, if its model and GPUs are known.

`python -m workloads.monitor.reading.flops RUN` prints the useful FLOPs of one trained token of a
run: a process of its own, so that the schema does not stay in the monitor's memory.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.monitor.reading.follow import number, read_object
from workloads.monitor.reading.hardware import GpuReading
from workloads.run import Run


@dataclass
class Flops:
    """Computes a run's FLOPs a token and its GPUs' peak once, in the background."""

    run: Run
    _process: subprocess.Popen[str] | None = None
    _answer: tuple[int, float] | None = None  # FLOPs of one token; FLOP/s of one GPU

    @property
    def pending(self) -> bool:
        """Whether the result is still pending."""
        return self._process is not None and self._process.poll() is None

    def utilisation(
        self, tokens_per_second: float, world_size: int, gpus: Sequence[GpuReading]
    ) -> float | None:
        """Share of the peak of all ranks' GPUs, which are taken to be like the ones here."""
        names = {gpu.name for gpu in gpus}
        if self._process is None and len(names) == 1:
            words = [sys.executable, "-m", __name__, str(self.run.path), *names]
            self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        if self._answer is None and self._process and self._process.poll() == 0:
            self._answer = _parsed(self._process.communicate()[0])
        if self._answer is None:
            return None
        token, peak = self._answer
        return tokens_per_second * token / (peak * world_size)


def _parsed(text: str) -> tuple[int, float] | None:
    words = text.split()
    return (int(words[0]), float(words[1])) if len(words) == 2 else None


def main(words: Sequence[str]) -> int:
    """Print FLOPs a token and a GPU's peak in FLOP/s; nothing where one of them is not known."""
    from workloads.plan.cards import peak_flops

    run, gpu = Run(Path(words[0])), " ".join(words[1:])
    token, peak = flops_per_token(run, read_object(run.path / "manifest.json")), peak_flops(gpu)
    if token and peak:
        print(token, peak)
    return 0


def flops_per_token(run: Run, manifest: Mapping[str, Any]) -> int | None:
    """Useful FLOPs of one trained token; None where the model's shape is not known on this machine.

    The network is never used: the monitor only reads files.
    """
    from workloads.plan.known_shapes import UnknownShape, shape_of
    from workloads.plan.speed import mfu_flops_per_token

    try:
        config = run.config()
        shape, _ = shape_of(config.model, {**os.environ, "HF_HUB_OFFLINE": "1"})
    except (UserError, UnknownShape):
        return None
    length = _mean_row(manifest) or number(config.model_dump().get("data", {}).get("max_length"))
    return None if length is None else mfu_flops_per_token(shape, int(length), config.adapter)


def _mean_row(manifest: Mapping[str, Any]) -> float | None:
    """Tokens of a row as the data report has them: attention never spans two packed rows."""
    data = manifest.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    if not isinstance(train, dict):
        return None
    rows, tokens = number(train.get("rows")), number(train.get("tokens"))
    return tokens / rows if rows and tokens else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
