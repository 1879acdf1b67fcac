"""A trained policy at work: what the cameras see and what is to be done in, actions out.

The same images, prompts and statistics as in training; `tatara serve` and the evaluation in the
simulator both use it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workloads.config.sections import Model
from workloads.engine.hub.upload import FACTS
from workloads.engine.pretrained.adapter import load_adapter
from workloads.engine.pretrained.base import locate, locate_for_use
from workloads.engine.pretrained.files import Tell, is_adapter
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.actions import normalize
from workloads.vla.data.augment import as_served
from workloads.vla.loading import image_processor, plain
from workloads.vla.model import load_pretrained
from workloads.vla.openvla import layout
from workloads.vla.openvla.checkpoint import STATISTICS, saved_oft
from workloads.vla.openvla.modeling import OpenVLA, action_size, action_stats
from workloads.vla.openvla.quantise import Quantisation
from workloads.vla.openvla.tokenizer import LlamaTokenizer
from workloads.vla.processing import ImageProcessor, Tokenizer, tokenize_prompt, training_prompt

_ONE_CAMERA = ("primary",)
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Observation:
    """One moment: images uint8 [H, W, 3] RGB by camera, the task in words, and, where the policy
    takes it, the robot's state [P] in the robot's units."""

    images: Mapping[str, np.ndarray]
    instruction: str
    state: np.ndarray | None = None


class Policy:
    """A model with all that belongs to it; `act` gives actions in the robot's units.

    cameras: the names it was trained with, in order; crop_area: what is left of an image, 1 where
    training did not vary images. The statistics are the model's own `norm_stats`.
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

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        attn: str = "sdpa",
        device: str | torch.device | None = None,
        four_bit: bool = False,
        tell: Tell = print,
    ) -> "Policy":
        """Load what `tatara export` wrote, an adapter's folder too, or a published checkpoint.

        dtype: by default the one it was exported in, float32 on a CPU. device: by default the GPU
        where there is one. four_bit: hold the base in nf4, for GPUs of 16 GB. Raises UserError
        where the folder is no policy.
        """
        # What a local folder lacks is named by its family, as it is read.
        folder = Path(path)
        if not folder.is_dir():
            folder, _ = locate_for_use(Model(name=os.fspath(path)), tell)
        facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = dtype or _dtype(folder, facts, place)
        quantisation = Quantisation(compute=kind) if four_bit else None
        if is_adapter(folder):
            model = _with_adapter(folder, facts, kind, attn, place, quantisation, tell)
        else:
            model = load_pretrained(folder, kind, attn, place, quantisation=quantisation)
        return cls(
            model.to(place) if quantisation is None else model,
            image_processor(folder),
            LlamaTokenizer(folder),
            facts.get("cameras") or _ONE_CAMERA,
            facts.get("crop_area", 1.0),
            str(path),
        )

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        """The data sets whose statistics it has."""
        return tuple(self.model.norm_stats)

    @property
    def state_size(self) -> int | None:
        """How many numbers a state has; None for a policy that takes none."""
        return None if self.model.oft is None else self.model.oft.proprio_dim

    @property
    def action_shape(self) -> tuple[int, ...]:
        """[chunk, A] of a policy that predicts several steps, else [A]; of its first data set."""
        size = action_size(action_stats(self.model.norm_stats, self.unnorm_keys[0]))
        return (size,) if self.model.oft is None else (self.model.oft.action_chunk, size)

    @property
    def is_chunked(self) -> bool:
        """Whether it predicts several steps at once, as OFT does."""
        return self.model.oft is not None

    remembers = False
    binary: tuple[int, ...] = ()

    def new_memory(self) -> Any:
        """None: nothing is remembered of an episode."""
        return None

    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """B observations → float64 [B, chunk, A]; the chunk of a policy with tokens is 1.

        unnorm_key: the data set whose statistics count, needed where there are several. Raises
        UserError for an unknown one, a missing camera, and a state that is not as in training.
        """
        action_stats(self.model.norm_stats, unnorm_key)
        inputs = [self.inputs(one, unnorm_key) for one in observations]
        by_length: dict[int, list[int]] = {}
        for row, one in enumerate(inputs):
            by_length.setdefault(len(one["input_ids"]), []).append(row)
        found: dict[int, np.ndarray] = {}
        # Prompts are never padded: those of one length go through the model together.
        for rows in by_length.values():
            predicted = self._predict([inputs[row] for row in rows], unnorm_key)
            found |= dict(zip(rows, predicted, strict=True))
        return np.stack([found[row] for row in range(len(inputs))])

    def inputs(
        self, observation: Observation, unnorm_key: str | None = None
    ) -> dict[str, np.ndarray]:
        """What the model takes: input_ids int64 [L], pixel_values float32 [C x cameras, H, W] and,
        where it is asked for, proprio float32 [P], normalised."""
        if not observation.instruction.strip():
            raise UserError("expected an instruction, found none; say what the robot is to do")
        missing = [name for name in self.cameras if name not in observation.images]
        if missing:
            raise UserError(
                f"expected images of the cameras {', '.join(self.cameras)}, found none of "
                f"{', '.join(missing)}; send one of each"
            )
        images = [
            as_served(self.processor, observation.images[name], self.crop_area)
            for name in self.cameras
        ]
        prompt = training_prompt(observation.instruction)
        found = {
            "input_ids": tokenize_prompt(self.tokenizer, prompt),
            "pixel_values": np.concatenate(images),
        }
        if self.state_size is not None:
            found["proprio"] = self._proprio(observation.state, unnorm_key)
        return found

    def _proprio(self, state: np.ndarray | None, unnorm_key: str | None) -> np.ndarray:
        stats = self.model.norm_stats
        key = next(iter(stats)) if unnorm_key is None else unnorm_key
        wanted = f"expected a state of {self.state_size} numbers, the robot's own"
        if state is None:
            raise UserError(f"{wanted}, found none; send it beside the images")
        if np.shape(state) != (self.state_size,):
            raise UserError(f"{wanted}, found shape {list(np.shape(state))}; send all joints")
        if not np.isfinite(state).all():
            raise UserError(f"{wanted}, found some that are not finite; send none of those")
        # In training's type: float32 arithmetic, as the recordings are.
        values = np.asarray(state, dtype=np.float32)
        return normalize(values, stats[key]["proprio"]).astype(np.float32)

    def _predict(
        self, rows: Sequence[Mapping[str, np.ndarray]], unnorm_key: str | None
    ) -> np.ndarray:
        """Rows with prompts of one length → [B, chunk, A]."""
        batch: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        actions = self.model.predict_actions(**batch, unnorm_key=unnorm_key)
        return actions if actions.ndim == 3 else actions[:, None]


def _dtype(folder: Path, facts: Mapping[str, Any], place: torch.device) -> torch.dtype:
    """A CPU computes in float32 whatever the weights are; a GPU in the type they were written."""
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
    tell: Tell,
) -> OpenVLA:
    """An exported adapter over its base, with its OFT head and its own statistics."""
    if not facts.get("base"):
        raise UserError(f"{folder}: expected {FACTS} to name the base; export the run once more")
    base = Model(name=facts["base"], revision=facts.get("revision"))
    oft = saved_oft(folder)
    where = locate(base, tell, weights=True)
    model = load_pretrained(where, dtype, attn, device, oft=oft, quantisation=quantisation)
    if oft is not None:
        from safetensors.torch import load_file

        state = load_file(folder / layout.OFT_WEIGHTS)
        layout.check_names([n for n in model.state_dict() if layout.is_head(n)], state, str(folder))
        model.load_state_dict(state, strict=False)
    model.norm_stats = read_json(folder / STATISTICS)
    wrapped = load_adapter(model, folder, facts.get("adapter") or "default").eval()
    return plain(wrapped if quantisation else wrapped.merge_and_unload())
