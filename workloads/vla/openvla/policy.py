"""Inference with OpenVLA, with the same images, prompts and statistics as in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workloads.config.sections import Model
from workloads.engine.export.export import SKELETON
from workloads.engine.hub.upload import FACTS
from workloads.engine.pretrained.adapter import load_adapter
from workloads.engine.pretrained.base import locate
from workloads.engine.pretrained.files import Reporter, is_adapter
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.vla.actions import normalize
from workloads.vla.config import VlaConfig
from workloads.vla.data.augment import as_served
from workloads.vla.model import load_pretrained
from workloads.vla.openvla import layout
from workloads.vla.openvla.checkpoint import STATISTICS, random_init, saved_oft
from workloads.vla.openvla.loading import image_processor, load_model, oft_spec, plain
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.quantise import Quantisation
from workloads.vla.openvla.tokenizer import LlamaTokenizer
from workloads.vla.policy import Observation, Policy, checked_state, observed
from workloads.vla.processing import ImageProcessor, Tokenizer, tokenize_prompt, training_prompt
from workloads.vla.statistics import action_size, action_stats

_ONE_CAMERA = ("primary",)
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class OpenVLAPolicy(Policy):
    """OpenVLA with tokenizer, processor and statistics; see `workloads.vla.policy.Policy`.

    cameras: the names in training, in order; crop_area: share of an image, 1 if training did not
    vary images. The statistics are the model's own `norm_stats`.
    """

    def __init__(
        self,
        model: OpenVLA,
        processor: ImageProcessor,
        tokenizer: Tokenizer,
        cameras: Sequence[str] = _ONE_CAMERA,
        crop_area: float = 1.0,
        name: str = "policy",
    ) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.cameras = tuple(cameras)
        self.crop_area = crop_area
        self.name = name

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        """The datasets whose statistics the policy has."""
        return tuple(self.model.norm_stats)

    @property
    def state_size(self) -> int | None:
        """Size of a state; None for a policy that takes none."""
        return None if self.model.oft is None else self.model.oft.proprio_dim

    @property
    def action_shape(self) -> tuple[int, ...]:
        """[chunk, A] of a policy that predicts several steps, else [A]; of its first dataset."""
        size = action_size(action_stats(self.model.norm_stats, self.unnorm_keys[0]))
        return (size,) if self.model.oft is None else (self.model.oft.action_chunk, size)

    @property
    def is_chunked(self) -> bool:
        """Whether it predicts several steps at once, as OFT does."""
        return self.model.oft is not None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def remembers(self) -> bool:
        return False

    @property
    def binary(self) -> tuple[int, ...]:
        return ()

    def action_statistics(self, unnorm_key: str | None) -> Mapping[str, Any]:
        return action_stats(self.model.norm_stats, unnorm_key)

    def new_memory(self) -> None:
        """None: the policy has no memory."""

    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        self.action_statistics(unnorm_key)
        inputs = [self.inputs(observation, unnorm_key) for observation in observations]
        by_length: dict[int, list[int]] = {}
        for row, given in enumerate(inputs):
            by_length.setdefault(len(given["input_ids"]), []).append(row)
        found: dict[int, np.ndarray] = {}
        # Prompts are never padded: those of one length go through the model together.
        for rows in by_length.values():
            predicted = self._predict([inputs[row] for row in rows], unnorm_key)
            found |= dict(zip(rows, predicted, strict=True))
        return np.stack([found[row] for row in range(len(inputs))])

    def inputs(
        self, observation: Observation, unnorm_key: str | None = None
    ) -> dict[str, np.ndarray]:
        """The model's inputs for one observation.

        input_ids int64 [L], pixel_values float32 [C x cameras, H, W] and, where the policy takes a
        state, proprio float32 [P], normalised.
        """
        images = [
            as_served(self.processor, image, self.crop_area)
            for image in observed(self.cameras, observation)
        ]
        prompt = training_prompt(observation.instruction)
        found = {
            "input_ids": tokenize_prompt(self.tokenizer, prompt),
            "pixel_values": np.concatenate(images),
        }
        if self.state_size is not None:
            stats = self.model.norm_stats
            key = next(iter(stats)) if unnorm_key is None else unnorm_key
            values = checked_state(observation.state, self.state_size)
            found["proprio"] = normalize(values, stats[key]["proprio"]).astype(np.float32)
        return found

    def untrained(self, run: Run | None, report: Reporter) -> "OpenVLAPolicy":
        """The policy with its run's model at step 0, or without one random weights."""
        model = _random(self.model) if run is None else _initial(run, report)
        return OpenVLAPolicy(
            model.to(self.model.device, self.model.dtype).eval(),
            self.processor,
            self.tokenizer,
            self.cameras,
            self.crop_area,
            "untrained",
        )

    def _predict(
        self, rows: Sequence[Mapping[str, np.ndarray]], unnorm_key: str | None
    ) -> np.ndarray:
        """Rows with prompts of one length → [B, chunk, A]."""
        batch: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        actions = self.model.predict_actions(**batch, unnorm_key=unnorm_key)
        return actions if actions.ndim == 3 else actions[:, None]


def load_policy(
    folder: Path,
    facts: Mapping[str, Any],
    name: str,
    dtype: torch.dtype | None,
    attn: str,
    device: torch.device,
    four_bit: bool,
    report: Reporter,
) -> OpenVLAPolicy:
    """Load an exported OpenVLA, whole or an adapter, or a published checkpoint."""
    kind = dtype or _dtype(folder, facts, device)
    quantisation = Quantisation(compute=kind) if four_bit else None
    if is_adapter(folder):
        model = _with_adapter(folder, facts, kind, attn, device, quantisation, report)
    else:
        model = load_pretrained(folder, kind, attn, device, quantisation=quantisation)
    return OpenVLAPolicy(
        model.to(device) if quantisation is None else model,
        image_processor(folder),
        LlamaTokenizer(folder),
        facts.get("cameras") or _ONE_CAMERA,
        facts.get("crop_area", 1.0),
        name,
    )


def _dtype(folder: Path, facts: Mapping[str, Any], place: torch.device) -> torch.dtype:
    """The dtype of computation: float32 on a CPU, that of the written weights on a GPU."""
    if place.type == "cpu":
        return torch.float32
    if "dtype" in facts:
        return _TYPES.get(str(facts["dtype"]), torch.bfloat16)
    return _TYPES.get(str(read_json(folder / "config.json").get("torch_dtype")), torch.bfloat16)


def _with_adapter(
    folder: Path,
    facts: Mapping[str, Any],
    dtype: torch.dtype,
    attn: str,
    device: torch.device,
    quantisation: Quantisation | None,
    report: Reporter,
) -> OpenVLA:
    """Load an exported adapter over its base, with its OFT head and its own statistics."""
    if not facts.get("base"):
        raise UserError(f"{folder}: expected {FACTS} to name the base; export the run once more")
    base = Model(name=facts["base"], revision=facts.get("revision"))
    oft = saved_oft(folder)
    where = locate(base, report, weights=True)
    model = load_pretrained(where, dtype, attn, device, oft=oft, quantisation=quantisation)
    if oft is not None:
        from safetensors.torch import load_file

        state = load_file(folder / layout.OFT_WEIGHTS)
        layout.check_names([n for n in model.state_dict() if layout.is_head(n)], state, str(folder))
        model.load_state_dict(state, strict=False)
    model.norm_stats = read_json(folder / STATISTICS)
    wrapped = load_adapter(model, folder, facts.get("adapter") or "default").eval()
    return plain(wrapped if quantisation else wrapped.merge_and_unload())


def _initial(run: Run, report: Reporter) -> OpenVLA:
    config: VlaConfig = run.config()
    statistics = read_json(run.path / STATISTICS)
    first = next(iter(statistics.values()))
    oft = oft_spec(
        config, len(first["action"]["q01"]), len(first.get("proprio", {}).get("q01", ()))
    )
    is_random = config.model.random_init
    folder = run.path / SKELETON if is_random else locate(config.model, report, weights=True)
    return load_model(config, folder, oft, statistics, report)


def _random(trained: OpenVLA) -> OpenVLA:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = random_init(trained.spec.raw, 0, trained.dtype, oft=trained.oft)
    model.norm_stats = trained.norm_stats
    return model
