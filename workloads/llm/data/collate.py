"""Rows of a prepared dataset as one batch for a causal language model.

Packed rows carry no attention mask. Position ids that start again with every sample keep samples
apart in eager and sdpa attention, as long as no cache is used; the cumulative lengths do so in
flash attention. Padding at the end of a packed row is a sample of its own, which no label counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workloads.llm.data.tokenise import IGNORED


@dataclass(frozen=True)
class Collate:
    """Collates rows; small and picklable, for the processes of a data loader.

    Takes rows with input_ids, labels, seq_lengths and row_ids. Returns input_ids and labels
    (batch, longest row); attention_mask for plain rows; position_ids, cu_seq_lens_q and _k,
    max_length_q and _k where a row holds several samples. The first token of every sample has no
    label: no token of its sample precedes it. Besides, for the trainer to take out before the
    model is called: row_ids, a list for each row, and tokens, how many are no padding.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        lengths = [[int(length) for length in row["seq_lengths"]] for row in rows]
        totals = [sum(item) for item in lengths]
        longest = max(totals)
        ids = np.full((len(rows), longest), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
        for at, (row, total, samples) in enumerate(zip(rows, totals, lengths, strict=True)):
            ids[at, :total] = row["input_ids"]
            labels[at, :total] = row["labels"]
            labels[at, np.cumsum([0, *samples[:-1]])] = IGNORED
        packed = any(len(samples) > 1 for samples in lengths)
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            **(_apart(lengths, longest) if packed else _masked(totals, longest)),
            "row_ids": [[int(number) for number in row["row_ids"]] for row in rows],
            "tokens": sum(totals),
        }


def _masked(totals: Sequence[int], longest: int) -> dict[str, Any]:
    places = np.arange(longest)[None, :]
    mask = places < np.asarray(totals)[:, None]
    return {"attention_mask": torch.from_numpy(mask.astype(np.int64))}


def _apart(lengths: Sequence[Sequence[int]], longest: int) -> dict[str, Any]:
    """Position ids and cumulative lengths that keep packed samples apart."""
    padded = [[*samples, longest - sum(samples)] for samples in lengths]
    samples = np.array([length for row in padded for length in row if length])
    ends = np.cumsum(samples)
    positions = np.arange(int(ends[-1])) - np.repeat(ends - samples, samples)
    # Flash attention joins all rows, so lengths accumulate over rows.
    cumulative = torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32))
    return {
        "position_ids": torch.from_numpy(positions.reshape(len(lengths), longest)),
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": int(samples.max()),
        "max_length_k": int(samples.max()),
    }
