"""Bytes of a head and of its loss: logits, tiles of them, and what both read."""

from workloads.plan.work import Work

# The fused head of TRL projects tiles of this many tokens by this many words at a time.
_TILE_TOKENS, _TILE_WORDS = 4096, 32768


def inputs(work: Work) -> int:
    """The last norm, and the head's input where its weight is trained or the head is fused."""
    hidden = work.shape.hidden
    norm = work.residual if work.norms_read_stream else 4
    norm = (norm + (work.residual if work.full else 0)) * hidden
    reads = work.trains_head or work.fused_head
    return work.tokens * norm + (work.scored_tokens * work.compute * hidden if reads else 0)


def logits_forward(work: Work) -> int:
    """Bytes of the head at the end of the forward pass.

    Unfused: logits in the compute type, as fp32, and their log-softmax. Fused: one tile.
    """
    if work.fused_head:
        return _tile(work)
    logits = work.scored_tokens * work.shape.vocab * 8
    return logits + output_logits(work) + _capped_logits(work) + _cast_head(work)


def _cast_head(work: Work) -> int:
    """Autocast's copy of a frozen head in a wider type, which the backward pass reads."""
    is_cast = work.autocast and not work.full and work.frozen > work.compute and work.scored
    return work.shape.vocab * work.shape.hidden * work.compute if is_cast else 0


def _capped_logits(work: Work) -> int:
    """Gemma 2 keeps logits between its bounds, too, until it has gone back through them."""
    return work.scored_tokens * work.shape.vocab * work.compute if work.shape.capped else 0


def output_logits(work: Work) -> int:
    """Bytes of the logits as the model gives them back, beside the fp32 ones that the loss reads.

    fp32 ones are read as they are, so that they count only where the caller keeps them.
    """
    counts = work.compute < 4 or work.keeps_logits
    return work.scored_tokens * work.shape.vocab * work.compute if counts else 0


def logits_backward(work: Work) -> int:
    """Bytes of the head at the start of the backward pass, the gradient of its weight included.

    Unfused: the log-softmax and two gradients of its size, 12 bytes a logit, 2 more than the
    forward pass; when they are gone, the logits' gradient and the weight's, in two types.
    Fused: a tile, the input's gradient in fp32 and as it goes on, the weight's in fp32.
    """
    table = work.shape.vocab * work.shape.hidden if work.trains_head and work.scored else 0
    # One that is trained beside an adapter has the compute type.
    handed = work.handed if work.full else work.compute
    if work.fused_head:
        cast = handed if handed < 4 else 0
        inputs = work.scored_tokens * work.shape.hidden * (4 + work.residual)
        return _tile(work) + inputs + table * (4 + cast)
    logits = work.scored_tokens * work.shape.vocab
    # By the time that the weight's gradient is cast, autocast's copy of the weight is gone.
    copy = handed if handed != work.compute else 0
    gradient = table * max(work.compute, copy if work.casts else work.compute + copy)
    kept = _capped_logits(work) + _cast_head(work)
    kept += output_logits(work) if work.keeps_logits else 0
    return kept + max(12 * logits, work.compute * logits + gradient)


def _tile(work: Work) -> int:
    weights = _TILE_WORDS * work.shape.hidden * (work.compute if work.casts else 0)
    return min(work.scored_tokens, _TILE_TOKENS) * _TILE_WORDS * work.compute + weights
