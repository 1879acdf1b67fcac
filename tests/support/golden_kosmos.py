"""The reference's tiny Kosmos-2 with its LSTM head as a policy that remembers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from workloads.vla.policy import Observation
from workloads.vla.robovlms.actions import command
from workloads.vla.robovlms.heads import History, LstmHead
from workloads.vla.robovlms.loading import empty
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.spec import HeadSize, PolicySpec

HERE = Path(__file__).resolve().parents[1] / "golden/robovlms"
SIZE = 28  # pixels of its images, square


class GoldenKosmos:
    """Both cameras; the text is the reference's, whatever the instruction."""

    name = "golden"
    cameras = ("static", "gripper")
    unnorm_keys = ("calvin",)
    state_size = None
    action_shape = (10, 7)
    is_chunked = True
    remembers = True
    binary = (6,)
    device = torch.device("cpu")

    def __init__(self, model: PolicyModel) -> None:
        self.model = model
        self.text = load_file(HERE / "window_io.safetensors")["text"][:1]

    def action_statistics(self, unnorm_key: str | None) -> Mapping[str, Any]:
        return {"mean": np.zeros(7)}

    def new_memory(self) -> History:
        assert isinstance(self.model.act_head, LstmHead)
        return History(self.model.act_head, window=8)

    @torch.no_grad()
    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        found = []
        for row, seen in enumerate(observations):
            images = np.stack([seen.images[name] / 127.5 - 1 for name in self.cameras])
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2)[None, None].float()
            memory = self.new_memory() if memories is None else memories[row]
            mask = torch.ones_like(self.text)
            states, _ = self.model.states(pixels, self.text, mask)
            arm, logits = memory.step(states[:, 0])
            found.append(command(arm[0, 0].numpy(), logits[0, 0].numpy(), -0.65, 0.65))
        return np.stack(found).astype(np.float64)


def golden_policy() -> GoldenKosmos:
    """With the reference's weights, in evaluation mode."""

    def stored(name: str) -> dict[str, torch.Tensor]:
        found = load_file(HERE / f"{name}.safetensors")
        return {key.removeprefix("model."): value.float() for key, value in found.items()}

    backbone = json.loads((HERE / "kosmos2_config.json").read_text())
    spec = PolicySpec({"model_type": "kosmos-2", **backbone}, "lstm", HeadSize(32, hidden=48))
    model = empty(spec, "sdpa")
    model.act_head.load_state_dict(stored("lstm_weights") | stored("mlp_heads_weights"))
    model.load_state_dict(stored("window_weights"), strict=False)
    model.backbone.tie_weights()
    return GoldenKosmos(model.eval())
