"""The sides of bench/gpu/vla.py: one turn of one side, from a fresh model to its figures.

Nothing here asks for a GPU by itself, so that a test can take a turn of a tiny case anywhere.
"""

import contextlib
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bench._pair import ROOT
from bench._rank import rank_session
from workloads.config.merge import resolve
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.engine.pretrained.base import Base
from workloads.plan.estimate import Breakdown, estimate
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources, open_sources
from workloads.vla.data.steps import Collate, Maker, Steps
from workloads.vla.model import random_init
from workloads.vla.openvla.config import OftSpec
from workloads.vla.openvla.loading import image_processor, oft_spec, spec_of
from workloads.vla.openvla.lora import used_linears
from workloads.vla.openvla.modeling import OpenVLA, multimodal_labels
from workloads.vla.openvla.tokenizer import LlamaTokenizer
from workloads.vla.train import build_trainer

OURS, PUBLISHED = "ours", "the published recipe"
SIDES = (OURS, PUBLISHED)
WARM = 4
TINY = ROOT / "data" / "demo" / "tiny-openvla"
PROFILE = ROOT / "profiles" / "recipes" / "vla-published.yaml"
# So small that weights stay what they are: every sample has the same loss whenever it comes.
RATE = 1e-12
STEPS = 64  # of an episode that are trained on
_SIDE = (480, 640)
_7B = {
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "pad_token_id": 32000,
        "torch_dtype": "bfloat16",
    },
    "image_sizes": [224, 224],
}


@dataclass(frozen=True)
class Case:
    """A batch size and a model's shape: OpenVLA-7B's own, or a tiny one for tests."""

    name: str
    title: str
    batch: int
    tiny: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    goal: float = 1.6
    samples_goal: float = 40.0
    peak_goal: float = 0.6

    def config(self, folder: Path, steps: int) -> VlaConfig:
        """The published adapter and schedule, as the profile has them, on the bench's own data."""
        words = {
            "model.name": str(folder / "model"),
            "model.random_init": True,
            "data.source": str(folder / "logs"),
            "data.eval_share": 0,
            "optim.learning_rate": RATE,
            "train.max_steps": steps,
            "train.per_device_batch_size": self.batch,
            "train.workers": 0 if self.tiny else 8,
            "checkpoints.every_steps": None,
            "tracking.tensorboard": False,
            **self.settings,
        }
        return resolve(PROFILE, {}, words)[0]

    def plan(self) -> Breakdown:
        """What `tatara plan` says of it."""
        with bench_folder(self, 1) as folder:
            return estimate(self.config(folder, WARM + 1), gpus=1, env={})


CASES = {
    case.name: case
    for case in (
        Case("batch16", "OpenVLA-7B, LoRA r32 on all linear layers, 16 samples a step", 16),
        Case("batch32", "OpenVLA-7B, LoRA r32 on all linear layers, 32 samples a step", 32),
    )
}


@dataclass(frozen=True)
class Turn:
    """Figures of one turn: mean loss, samples a second, most bytes allocated."""

    loss: float
    rate: float
    peak: int


@contextlib.contextmanager
def bench_folder(case: Case, samples: int) -> Iterator[Path]:
    """`model/`, as a profile names one, and `logs/`: demonstrations with so many samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(TINY, folder / "model")
        if not case.tiny:
            file = folder / "model" / "config.json"
            fields = json.loads(file.read_text())
            del fields["tiny_vision_towers"]
            file.write_text(json.dumps(fields | _7B))
        for number in range(-(-samples // STEPS)):
            count = min(STEPS, samples - number * STEPS)
            _episode(folder / "logs" / f"episode_{number:04d}_20260101_000000", number, count)
        yield folder


def _episode(folder: Path, number: int, count: int) -> None:
    """Pictures of a camera's size; one step more than are trained on, the placeholder."""
    chance = np.random.default_rng(number)
    states = chance.uniform(-1.5, -0.1, (count + 1, 8)).astype(np.float32)
    coarse = chance.integers(0, 256, (count + 1, 15, 20, 3), dtype=np.uint8)
    frames = [frame.repeat(32, axis=0).repeat(32, axis=1) for frame in coarse]
    assert frames[0].shape[:2] == _SIDE
    write_episode(folder, states, {"primary": frames}, "put the red cube into the box")


@dataclass
class Clock(TrainerCallback):
    """Seconds from the end of the warm-up to the end."""

    since: float = 0.0
    seconds: float = 0.0

    def note(self, step: int, last: int) -> None:
        if step in (WARM, last) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if step == WARM:
            self.since = time.perf_counter()
        if step == last:
            self.seconds = time.perf_counter() - self.since

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.note(state.global_step, state.max_steps)


def take_turn(case: Case, side: str, steps: int) -> Turn:
    """Build a model, train it for `steps`, one pass over the data, and leave nothing behind."""
    transformers.logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    try:
        with bench_folder(case, case.batch * steps) as folder:
            loss, seconds = _SIDES[side](case, steps, folder)
        peak = torch.cuda.max_memory_allocated() if gpu else 0
        return Turn(loss, case.batch * (steps - WARM) / seconds, peak)
    finally:
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


def _model(folder: Path, sources: Sources, attention: str, oft: OftSpec | None = None) -> OpenVLA:
    """Drawn where it is trained: random weights of billions take long on a CPU. What that needed,
    all of them in fp32, is not counted: a checkpoint is read as it is held."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_init(folder / "model", 0, torch.bfloat16, attention, oft, device)
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model.norm_stats = sources.statistics
    model.name_or_path = model.config.name_or_path = str(folder / "model")
    return model


def _ours(case: Case, steps: int, folder: Path) -> tuple[float, float]:
    """`workloads.vla.train`'s own trainer, with a session and a run directory."""
    config = case.config(folder, steps)
    sources = open_sources(config, None, lambda: None)
    oft = oft_spec(config, sources.action_dim, sources.proprio_dim)
    model = _model(folder, sources, "sdpa", oft)
    model.label_logits_only = True
    with rank_session(folder) as session:
        base = Base(config.model, folder / "model", spec_of(folder / "model"))
        trainer = build_trainer(config, session, base, model, sources)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        loss = _mean_loss(trainer.state.log_history)
        trainer.accelerator.free_memory()
    return loss, clock.seconds


def _mean_loss(history: Sequence[Mapping[str, Any]]) -> float:
    """Over all steps, from rows that each hold the mean of those since the row before."""
    total, since = 0.0, 0
    for row in history:
        if "loss" in row:
            total, since = total + row["loss"] * (row["step"] - since), row["step"]
    return total / since


@dataclass
class _Metrics:
    """What the published loop takes from the GPU in every step, one number at a time."""

    tokenizer: Any
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def take(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        found, wanted = logits[:, :-1].argmax(dim=2), labels[:, 1:]
        actions = wanted >= self.tokenizer.first_id
        right = (found == wanted) & actions
        self.losses.append(loss.item())
        self.accuracies.append((right.sum().float() / actions.sum().float()).item())
        predicted = self.tokenizer.decode(found[actions].cpu().numpy())
        true = self.tokenizer.decode(wanted[actions].cpu().numpy())
        self.errors.append(float(np.abs(predicted - true).mean()))


def _published(case: Case, steps: int, folder: Path) -> tuple[float, float]:
    """The loop that OpenVLA's authors published, in words of our own: autocast, eager attention,
    logits of the whole sequence in fp32, pictures made in the training process, an AdamW that is
    not fused, and three numbers taken from the GPU in every step. Data and adapter are as ours."""
    from peft import LoraConfig, get_peft_model

    config = case.config(folder, steps)
    sources = open_sources(config, None, lambda: None)
    base = _model(folder, sources, "eager")
    maker = Maker(
        image_processor(folder / "model"),
        LlamaTokenizer(folder / "model"),
        base.action_tokenizer,
        sources.statistics,
        config.data.augmentation,
    )
    samples = Steps(sources.train, maker, config.train.seed, varied=True)
    targets = used_linears(base)
    lora = LoraConfig(r=32, lora_alpha=16, lora_dropout=0.0, target_modules=targets)
    model = get_peft_model(base, lora).train()
    device = base.device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    collate = Collate(base.spec.pad_token_id, base.spec.patches, False)
    loader = DataLoader(samples, case.batch, shuffle=True, collate_fn=collate, drop_last=True)
    metrics, clock = _Metrics(base.action_tokenizer), Clock()
    for step, batch in enumerate(loader, start=1):
        with torch.autocast(device.type, torch.bfloat16):
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            pixels = batch["pixel_values"].to(device, torch.bfloat16)
            logits = model(pixel_values=pixels, **inputs).logits.float()
        labels = multimodal_labels(batch["labels"].to(device), base.spec.patches)
        flat = logits[:, :-1].reshape(-1, logits.shape[-1])
        loss = functional.cross_entropy(flat, labels[:, 1:].reshape(-1), ignore_index=-100)
        loss.backward()
        metrics.take(loss, logits, labels)
        optimizer.step()
        optimizer.zero_grad()
        clock.note(step, steps)
    return float(np.mean(metrics.losses)), clock.seconds


_SIDES: Mapping[str, Callable[[Case, int, Path], tuple[float, float]]] = {
    OURS: _ours,
    PUBLISHED: _published,
}
