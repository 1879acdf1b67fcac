"""What the language model reads of frames, and what each of its tokens is."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TokenSequence:
    """Embeddings [N, T, D] of N sequences, and of each token, [N, T]:

    mask int64, 0 for padding; images and actions bool, whether it belongs to an image, or is an
    action token or the id of a discrete action; frames int64, the number of its frame. Where a
    cache holds what stands before the embeddings, these four include it.
    """

    embeds: Tensor
    mask: Tensor
    images: Tensor
    actions: Tensor
    frames: Tensor

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.embeds, self.mask, self.images, self.actions, self.frames

    @property
    def text(self) -> Tensor:
        """bool [N, T]: the tokens of the instruction."""
        return (self.mask > 0) & ~self.images & ~self.actions

    @property
    def blocks(self) -> Tensor:
        """int64 [N, T]: a frame's number for its images and text, -1 for its action."""
        return torch.where(self.actions, -1, self.frames)

    @property
    def positions(self) -> Tensor:
        """int64 [N, T]: counted from 0, without padding."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    def side_by_side(self, samples: int) -> "TokenSequence":
        """The frames of a sample, which follow each other, in one sequence: [samples, W · T]."""
        steps = torch.arange(len(self.mask) // samples, device=self.mask.device)
        frames = steps.repeat(samples)[:, None].expand_as(self.mask)
        numbered = replace(self, frames=frames)
        return TokenSequence(
            *(part.reshape(samples, -1, *part.shape[2:]) for part in numbered._parts)
        )

    def rows(self) -> list["TokenSequence"]:
        """Each sequence by itself."""
        parts = zip(*(part.split(1) for part in self._parts), strict=True)
        return [TokenSequence(*own) for own in parts]

    def continued(self, embeds: Tensor) -> "TokenSequence":
        """With tokens of the last frame's action behind it, [N, n, D]."""
        count = embeds.shape[1]
        return TokenSequence(
            torch.cat([self.embeds, embeds], dim=1),
            functional.pad(self.mask, (0, count), value=1),
            functional.pad(self.images, (0, count), value=False),
            functional.pad(self.actions, (0, count), value=True),
            torch.cat([self.frames, self.frames[:, -1:].expand(-1, count)], dim=1),
        )


def joined(frames: Iterable[TokenSequence]) -> TokenSequence:
    """Frames one behind the other, numbered from 0; each may hold its own number of tokens."""
    numbered = [
        replace(frame, frames=torch.full_like(frame.frames, number))
        for number, frame in enumerate(frames)
    ]
    return TokenSequence(
        *(torch.cat(parts, dim=1) for parts in zip(*(own._parts for own in numbered), strict=True))
    )


def stacked(rows: Iterable[TokenSequence]) -> TokenSequence:
    """Sequences of as many tokens as one batch."""
    return TokenSequence(
        *(torch.cat(parts) for parts in zip(*(row._parts for row in rows), strict=True))
    )
