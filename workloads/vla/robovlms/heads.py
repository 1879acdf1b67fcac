"""Policy heads: from the language model's state at the action token to chunks of actions.

Parameters have RoboVLMs' names, so that its checkpoints load as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2Model

from workloads.vla.robovlms.spec import BRANCH, GPT_HEADS, GPT_LAYERS, HeadSize

Chunks = tuple[Tensor, Tensor | None]


class Branch(nn.Module):
    """Four linear layers with ReLU between them, and tanh behind those of an arm."""

    def __init__(self, features: int, out: int, tanh: bool) -> None:
        super().__init__()
        widths = (features, *BRANCH, out)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1], *([nn.Tanh()] if tanh else []))

    def forward(self, state: Tensor) -> Tensor:
        """[..., features] → [..., out]."""
        return self.mlp(state)


class Head(nn.Module):
    """Branches of arm and gripper on a subclass's features of a window."""

    remembers = True

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.size = size
        width = size.hidden * size.latent
        self.actions = Branch(width, size.chunk * (size.size - size.gripper), tanh=True)
        if size.gripper:
            self.gripper = Branch(width, size.chunk, tanh=False)

    def flat(self, states: Tensor) -> Tensor:
        """states [B, W, tokens, features] → [B, W, latent · features]."""
        if self.size.pool:
            least = torch.finfo(states.dtype).min
            by_feature = states.flatten(0, 1).transpose(1, 2)
            largest = functional.adaptive_max_pool1d(by_feature, self.size.latent)
            # A part in which all states are masked has no maximum.
            largest = largest.masked_fill(largest == least, 0)
            states = largest.transpose(1, 2).unflatten(0, states.shape[:2])
        return states.flatten(2)

    def chunks(self, state: Tensor) -> Chunks:
        """Chunks of actions from the states [B, W, width].

        arm [B, W, chunk, size − 1] in −1..1, gripper logits [B, W, chunk, 1]; without a gripper all
        `size` numbers are the arm's.
        """
        arm = self.actions(state).unflatten(-1, (self.size.chunk, -1))
        if not self.size.gripper:
            return arm, None
        return arm, self.gripper(state).unflatten(-1, (self.size.chunk, 1))


class FcHead(Head):
    """No memory: each step by itself."""

    remembers = False

    def __init__(self, size: HeadSize) -> None:
        super().__init__(size)
        width = size.features * size.latent
        self.mlp = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, size.hidden * size.latent),
        )

    def forward(self, states: Tensor) -> Chunks:
        """states [B, W, latent, features] → see `chunks`."""
        return self.chunks(self.mlp(self.flat(states)))


class LstmHead(Head):
    """An LSTM over the steps of a window, from a zero state."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__(size)
        width = size.hidden * size.latent
        self.rnn = nn.LSTM(
            size.features * size.latent, width, size.layers, batch_first=True, dropout=size.dropout
        )

    def forward(self, states: Tensor) -> Chunks:
        """states [B, W, latent, features] → see `chunks`."""
        return self.chunks(self.rnn(self.flat(states))[0])


class GptHead(Head):
    """A GPT-2 of 8 layers and 8 heads over the steps of a window, with learned positions.

    Where the widths differ, each of a step's tokens is brought to the head's. RoboVLMs has that
    for one token alone.
    """

    def __init__(self, size: HeadSize) -> None:
        super().__init__(size)
        width = size.hidden * size.latent
        config = GPT2Config(
            n_layer=GPT_LAYERS, n_head=GPT_HEADS, n_embd=width, n_positions=size.window
        )
        self.gpt = GPT2Model(config)
        del self.gpt.wte  # its input is states, no tokens
        same = size.features == size.hidden
        self.fc = nn.Identity() if same else nn.Linear(size.features, size.hidden)

    def forward(self, states: Tensor) -> Chunks:
        """states [B, W, latent, features] → see `chunks`."""
        return self.chunks(self.remember(self.flat(states)))

    def remember(self, flat: Tensor) -> Tensor:
        """[B, W, latent · features] → [B, W, latent · hidden]."""
        tokens = self.fc(flat.unflatten(-1, (self.size.latent, -1))).flatten(-2)
        return self.gpt(inputs_embeds=tokens, use_cache=False).last_hidden_state


class History:
    """The memory of a head over an episode, one step at a time.

    The first `window` steps carry an LSTM's state on; later ones replay the last `window` steps
    from a zero state, so that older ones are forgotten. A GPT replays them always.
    """

    def __init__(self, head: LstmHead | GptHead, window: int) -> None:
        self.head = head
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Begin a new episode."""
        self._states: list[Tensor] = []
        self._carried: tuple[Tensor, Tensor] | None = None
        self._steps = 0

    def step(self, states: Tensor) -> Chunks:
        """states [B, tokens, features] of one step → see `Head.chunks`, W = 1."""
        step = self.head.flat(states.unsqueeze(1))
        self._states = [*self._states, step][-self.window :]
        self._steps += 1
        if isinstance(self.head, GptHead):
            out = self.head.remember(torch.cat(self._states, dim=1))
        elif self._steps <= self.window:
            out, self._carried = self.head.rnn(step, self._carried)
        else:
            out, _ = self.head.rnn(torch.cat(self._states, dim=1))
        return self.head.chunks(out[:, -1:])


@dataclass(frozen=True)
class Loss:
    """total = arm + weight · gripper; accuracy: share of gripper labels met; both of the gripper
    are 0 where there is none."""

    arm: Tensor
    gripper: Tensor
    total: Tensor
    gripper_accuracy: Tensor


def policy_loss(
    arm: Tensor,
    gripper_logits: Tensor | None,
    arm_labels: Tensor,
    gripper_labels: Tensor | None,
    mask: Tensor | None = None,
    gripper_weight: float = 0.01,
) -> Loss:
    """Huber of the arm and binary cross-entropy of the gripper, means over valid entries.

    arm, arm_labels [B, W, chunk, 6]; gripper_logits [B, W, chunk, 1]; gripper_labels, 0 or 1, and
    mask [B, W, chunk]: true where an entry counts. Without one that counts the loss is 0.
    """
    valid = arm.new_ones(arm.shape[:-1]).float() if mask is None else mask.float()
    count = valid.sum().clamp(min=1)
    huber = functional.huber_loss(arm.float(), arm_labels.float(), reduction="none", delta=1.0)
    of_arm = (huber.mean(-1) * valid).sum() / count
    if gripper_logits is None or gripper_labels is None:
        return Loss(of_arm, of_arm.new_zeros(()), of_arm, of_arm.new_zeros(()))
    logits, labels = gripper_logits.squeeze(-1).float(), gripper_labels.float()
    crossed = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    of_gripper = (crossed * valid).sum() / count
    met = ((logits.sigmoid() > 0.5) == (labels > 0.5)).float()
    accuracy = (met * valid).sum() / count
    return Loss(of_arm, of_gripper, of_arm + gripper_weight * of_gripper, accuracy)
