"""Bytes of activations: kept from forward to backward pass, and temporary ones of both.

Counted from what autograd saves in the layers of transformers. The backward pass of a layer has two
possible peaks: its MLP, while all of the layer is kept, and its attention, when the MLP's part is
freed. `bench/plan_memory.py` compares the counts with allocated bytes.
"""

from workloads.plan.shapes import Linear, ModelShape, TowerShape
from workloads.plan.work import Work

# Tensors in transfer to host memory under offloading (`max_fwd_stash_size` of TRL 1.16).
_ON_THEIR_WAY = 5
_FUSED_PROJECTIONS = ("query_key_value", "qkv_proj")
_OUTPUTS = ("o_proj", "dense")
# Families that rotate a part of queries and keys, and concatenate it with the rest.
_CONCATENATING = ("gpt_neox", "phi3", "stablelm", "stablelm_epoch")


def widens(shape: ModelShape, quantised: bool) -> bool:
    """Whether the stream becomes fp32: autocast computes a LayerNorm in fp32, and a quantised
    matrix gives its product in the type of its input."""
    return shape.layer_norm and quantised


def layer(work: Work) -> int:
    """Bytes a token that one decoder layer keeps, eager attention's scores left out."""
    return _norms(work) + _attention(work) + _mlp(work) + _inputs(work)


def _norms(work: Work) -> int:
    """A norm computes in fp32: it keeps its input (4 h; in an fp32 stream, and for a LayerNorm
    without autocast, that is the stream itself, which nothing else keeps) and, where its weight is
    trained, the normalised value in the stream's type; a LayerNorm recomputes the latter. One or
    two numbers of statistics a token. Compiled, it is one kernel: its input as it came, and the
    value is made again.
    """
    shape = work.shape
    if work.compiled:
        return shape.norms * (work.residual * shape.hidden + 8)
    value = 0 if shape.layer_norm or not work.full else work.residual * shape.hidden
    inputs = 1 if shape.parallel and work.norms_read_stream else shape.norms
    size = work.residual if work.norms_read_stream else 4
    return inputs * size * shape.hidden + shape.norms * (value + 8)


def _attention(work: Work) -> int:
    """Rotated queries and keys, values, the output, and the log-sum of each head in fp32.

    The output is also what the output projection reads, but under flash attention it has the
    queries' layout, which concatenating their rotated part has changed. Eager attention keeps keys
    and values for every query head; its scores are counted apart.
    """
    shape, size = work.shape, work.compute
    # A slice of a joint projection keeps the whole of it; the products of eager attention copy it,
    # where there are several rows.
    joint = any(linear.name in _FUSED_PROJECTIONS for linear in shape.linears)
    joint = joint and not (work.eager and work.rows > 1)
    value = work.query + 2 * work.key if joint else work.key
    kept = size * (2 * work.query + work.key + value)
    if shape.family in _CONCATENATING and not (work.eager or work.expands):
        kept += size * work.query
    kept += 4 * shape.heads + _head_norms(work)
    # A view is enough for one head that all share, but not for the products of eager attention.
    if work.eager or (work.expands and work.shape.kv_heads > 1):
        kept += 2 * size * (work.query - work.key)
    if (work.eager and not _reads_output(work)) or _counts_as_held(work):
        kept -= size * work.query
    return kept


def _reads_output(work: Work) -> bool:
    """Whether the output projection keeps its input: for its own weight, or for an adapter's."""
    names = {linear.name for linear in _in_layers(work)}
    return work.full or (work.shares_inputs and not names.isdisjoint(_OUTPUTS))


def _head_norms(work: Work) -> int:
    """Norms over the heads of queries and keys keep what all norms keep; see `_norms`."""
    if not work.shape.head_norm:
        return 0
    kept = work.compute if work.compiled else 4 + (work.compute if work.full else 0)
    return kept * (work.query + work.key) + 8 * (work.shape.heads + work.shape.kv_heads)


def _kept_scores(work: Work) -> int:
    """Bytes of a layer's scores until its backward pass: the softmax in fp32 and in the compute
    type, and the capped ones."""
    size = work.compute
    return work.scores * (4 + (size if size < 4 else 0)) + _capped_scores(work)


def _capped_scores(work: Work) -> int:
    """Gemma 2 keeps scores between its caps too, until it has gone back through the softmax."""
    return work.scores * work.compute if work.shape.capped else 0


def mask(work: Work) -> int:
    """Bytes of eager attention's mask, in the stream's type, kept to the end by checkpointing."""
    return work.seen_pairs * work.residual if work.eager and work.checkpointing else 0


def _mlp(work: Work) -> int:
    """Gated: the gate before and after its activation, and the up projection: 3 m.
    Otherwise the activation's input: m. The down projection's input is counted with `_inputs`.
    Compiled, the activation is made again in the backward pass.
    """
    gated = 2 if work.compiled else 3
    return work.between * work.shape.intermediate * (gated if work.shape.gated else 1)


def _inputs(work: Work) -> int:
    """Inputs of matrices, kept for the gradients of their weights.

    All weights trained: autocast gives every matrix that reads an fp32 norm a copy of its own;
    without it those behind one norm share. The output projection reads what attention keeps anyway.
    """
    if not work.full:
        return _adapter_inputs(work)
    hidden, size = work.shape.hidden, work.compute
    down = size * work.shape.intermediate
    if not (work.casts or (work.shape.layer_norm and size < 4)):
        return 2 * size * hidden + down
    readers = [linear for linear in work.shape.decoder if linear.inputs == hidden]
    count = len(readers) - (1 if any(reader.name in _OUTPUTS for reader in readers) else 0)
    return count * size * hidden + down


def _in_layers(work: Work) -> list[Linear]:
    return [linear for linear in work.adapted if linear.where in ("attention", "mlp")]


def _adapter_inputs(work: Work) -> int:
    """Bytes a token that one layer's adapters keep; without dropout and casts they share inputs."""
    adapters = _in_layers(work)
    if not work.shares_inputs:
        return sum(_adapter_input(work, linear) for linear in adapters) // work.shape.layers
    hidden, middle = work.shape.hidden, work.shape.intermediate
    before_norm = {
        adapter.where
        for adapter in adapters
        if adapter.inputs == hidden and adapter.name != "o_proj"
    }
    wide = any(adapter.inputs == middle for adapter in adapters)
    products = len(adapters) * work.rank
    if _counts_as_held(work):
        return work.compute * products
    return work.compute * (len(before_norm) * hidden + wide * middle + products)


def _adapter_input(work: Work, linear: Linear) -> int:
    """LoRA keeps its own copy of the input, one byte of dropout mask each, and the small product.

    The mask is one byte on a GPU; on a CPU it is a number of the adapter's type.
    """
    copy = work.adapter_input + (1 if work.dropout else 0)
    return linear.count * (copy * linear.inputs + work.adapter_input * work.rank)


def layer_backward(work: Work) -> int:
    """Bytes at the highest moment of going back through one layer, what it keeps included.

    With checkpointing the layer has been computed again; its input stream is counted in `stack`.
    """
    return max(_down_projection(work), _mlp_backward(work), _attention_backward(work))


def waiting(work: Work) -> list[Linear]:
    """The matrices of a layer whose gradients come after that moment."""
    if max(_down_projection(work), _mlp_backward(work)) >= _attention_backward(work):
        return list(work.shape.decoder)
    return _reading_attention(work)


def _reading_attention(work: Work) -> list[Linear]:
    """The matrices before a layer's attention."""
    return [linear for linear in work.shape.decoder
            if linear.where == "attention" and linear.name not in _OUTPUTS]  # fmt: skip


def _down_projection(work: Work) -> int:
    """The layer's last matrix, as it is computed (again): the MLP's product, the stream with both
    norms' results beside it, and, where it has an adapter, what the adapter makes of the product.

    peft casts the product to the adapter's type, and dropout makes it once more. Over a quantised
    base autocast does the casting, and nothing is made that is not kept.
    """
    shape, size = work.shape, work.between
    middle = size
    if any(linear.inputs == shape.intermediate for linear in _in_layers(work)):
        casts = work.adapter_bytes != work.compute and not work.quantised
        middle += work.adapter_bytes * (1 + work.dropout) if casts else 0
    moving = middle * shape.intermediate + 4 * size * shape.hidden
    return _recomputed(work) + work.tokens * moving


def _mlp_backward(work: Work) -> int:
    """The layer, gradients of the MLP's product and of its two factors (one where it is not gated;
    less the product itself, which is gone by then where it was kept), the stream's, and one
    matrix's gradient in the compute type beside its copy in the stored one.

    Over a quantised base a matrix is dequantised a moment earlier, beside the first gradient.
    """
    shape, size = work.shape, work.compute
    one = work.between * shape.intermediate * work.tokens
    middle = (3 if shape.gated else 2) * one - (one if _keeps_product(work) else 0)
    if work.quantised:
        matrix = work.dequantised * shape.hidden * shape.intermediate
        middle = max(middle, matrix + work.dequantised * shape.intermediate * work.tokens)
    weight = (size + work.stored) * shape.hidden * shape.intermediate if work.full else 0
    stream = work.tokens * work.residual * shape.hidden
    return _recomputed(work) - _down_input(work) + middle + stream + weight


def _keeps_product(work: Work) -> bool:
    """Whether the MLP's product is kept for the gradient of the matrix that reads it."""
    reads = any(linear.inputs == work.shape.intermediate for linear in _in_layers(work))
    return work.full or (work.shares_inputs and reads and not _counts_as_held(work))


def _down_input(work: Work) -> int:
    """Bytes that the adapter of the layer's last matrix kept, and has freed by then."""
    if work.shares_inputs:
        return 0
    adapters = [linear for linear in _in_layers(work) if linear.inputs == work.shape.intermediate]
    return (
        work.tokens * sum(_adapter_input(work, linear) for linear in adapters) // work.shape.layers
    )


def _attention_backward(work: Work) -> int:
    """Bytes left of the layer at its attention's backward pass, and the gradients there.

    Eager attention: 16 bytes a score. The softmax in fp32, its gradient, the product of both that
    CUDA's kernel makes first, and the gradient of the scores, which in fp16 has 2 bytes, because
    that softmax is fused with its cast; an fp32 mask makes the scores fp32 before. Then queries,
    keys and the values' gradient for every query head. A flash kernel sums the queries' gradient in
    fp32, and makes those of keys and values for every query head.
    """
    size, query = work.compute, work.query
    inputs = _before_attention(work) + work.residual * work.shape.hidden
    if work.eager:
        is_fused = work.fp16 and work.residual == 2
        scores = work.scores * (14 if is_fused else 16) + _capped_scores(work)
        return work.tokens * (inputs + _head_norms(work) + 3 * size * query) + scores
    kept = _attention(work) - 4 * work.shape.heads
    gradients = size * query + 4 * query + size * query + 2 * size * query
    return work.tokens * (inputs + kept + gradients)


def _before_attention(work: Work) -> int:
    """Bytes a token that the first norm and the projections behind it keep."""
    shape = work.shape
    norm = 0 if work.norms_read_stream else 4 * shape.hidden
    before = _reading_attention(work)
    if work.full:
        copies = len(before) if work.casts else 1
        return norm + (work.residual + copies * work.compute) * shape.hidden
    readers = [linear for linear in _in_layers(work) if linear in before]
    if work.shares_inputs:
        return norm + (work.compute * shape.hidden if readers else 0)
    return norm + sum(_adapter_input(work, linear) for linear in readers) // shape.layers


def _recomputed(work: Work) -> int:
    """Bytes of one layer, without the stream before it where checkpointing keeps that anyway."""
    keeps = work.norms_read_stream and work.checkpointing
    stream = work.residual * work.shape.hidden if keeps else 0
    return work.tokens * (layer(work) - stream) + _kept_scores(work)


def layer_forward(work: Work) -> int:
    """Bytes of the last layer's MLP as it is computed, beside the stream before and behind its
    attention and its norm's result; nothing where the layer keeps all of it anyway.

    Gated: both factors and their product. Kosmos-2 has a norm inside, which reads and gives fp32.
    """
    if not work.checkpointing:
        return 0
    shape, size = work.shape, work.compute
    middle = 3 * size if shape.gated else size
    inside = 8 if shape.family == "kosmos-2" else 0
    stream = 2 * work.residual + size
    return work.tokens * ((middle + inside) * shape.intermediate + stream * shape.hidden)


def stack(work: Work) -> int:
    """Bytes that all layers and towers keep from the forward pass to the backward pass.

    With checkpointing only the stream before each layer; the rest is computed again.
    """
    return layers_here(work) * kept_layer(work) - _untracked(work) + towers(work) + mask(work)


def _untracked(work: Work) -> int:
    """Bytes that the first layer does not keep, because nothing before the first adapter needs a
    gradient: the norm's input, and its attention where only MLPs have adapters. Checkpointing makes
    the embeddings need one.
    """
    if work.checkpointing or work.offloaded or work.trains_embedding or not _in_layers(work):
        return 0
    parts = {linear.where for linear in work.adapted}
    if parts & {"vision", "projector"}:
        return 0
    if "attention" in parts:
        size = work.residual if work.norms_read_stream else 4
        return work.tokens * size * work.shape.hidden
    return work.tokens * (_norms(work) + _attention(work)) + _kept_scores(work)


def layers_here(work: Work) -> int:
    """Layers whose activations are on the GPU at a time; TRL keeps five tensors in transfer."""
    if not work.offloaded:
        return work.shape.layers
    return min(work.shape.layers, _ON_THEIR_WAY if work.checkpointing else 1)


def kept_layer(work: Work) -> int:
    """Bytes that one layer keeps from the forward pass to its backward pass."""
    if work.checkpointing:
        return work.tokens * work.residual * work.shape.hidden
    return work.tokens * layer(work) + _kept_scores(work)


def held_inputs(work: Work) -> int:
    """Bytes of the inputs that matrices in int8 keep until a step ends."""
    if not work.holds_inputs:
        return 0
    shape = work.shape
    wide = min(shape.norms, 2) * shape.hidden + shape.intermediate
    return shape.layers * work.tokens * (work.between * wide + work.compute * work.query)


def _counts_as_held(work: Work) -> bool:
    """Whether a layer's inputs are those of `held_inputs`; computed again, they are others."""
    return work.holds_inputs and not work.checkpointing


def images(work: Work) -> int:
    """Bytes of the images of a micro-batch, in fp32, which stay to its end."""
    return 4 * work.rows * sum(_image(tower) for tower in work.shape.towers)


def _image(tower: TowerShape) -> int:
    return (tower.patches - tower.extra) * tower.values


def towers(work: Work) -> int:
    """Bytes that vision towers keep whose weights learn; no backward pass goes through others."""
    kept = 0
    for tower in work.shape.towers:
        if _tower_linears(work, tower):
            kept += tower.patches * tower.layers * _tower_layer(work, tower)
            kept += _resampler(work, tower) or _projected(work, tower)
            if work.full and work.compute < 4:
                # The convolution that cuts patches reads a copy.
                kept += work.compute * _image(tower)
    return work.rows * kept


def _tower_linears(work: Work, tower: TowerShape) -> list[Linear]:
    """The matrices of a tower's layers that learn, or have an adapter."""
    learning = work.shape.linears if work.full else work.adapted
    return [
        linear for linear in learning if linear.where == "vision" and linear.count == tower.layers
    ]


def _resampler(work: Work, tower: TowerShape) -> int:
    """What Kosmos-2 keeps between its tower and its image tokens, which is never computed again:
    the inputs of two norms and of a normalisation, that of the projection, and of latent queries
    and all that they look at the keys, the values and what both are made of.
    """
    if not tower.queries:
        return 0
    size, stream = work.compute, _tower_stream(work, tower)
    before = tower.patches * tower.hidden * (3 * stream + size)
    masks = 2 if work.dropout and not work.full else 0
    return before + (tower.patches + tower.queries) * work.shape.hidden * (4 * size + masks)


def _tower_stream(work: Work, tower: TowerShape) -> int:
    """Bytes of a number in the stream between a tower's layers."""
    return 4 if tower.normed and work.autocast else work.residual


def _projected(work: Work, tower: TowerShape) -> int:
    """The input of the norm behind a tower's layers, and the projection's; a tower whose last
    layer is not computed hands its features on as they are."""
    if tower.headless:
        return 0
    reads = work.compute if work.full else 0
    return tower.patches * tower.hidden * (_tower_stream(work, tower) + reads)


def _tower_layer(work: Work, tower: TowerShape) -> int:
    """Two norms in fp32, queries, keys, values and output, and the MLP, as in a decoder layer."""
    if work.checkpointing:
        return _tower_stream(work, tower) * tower.hidden
    size = work.compute
    middle = (3 if tower.gated else 1) * size * tower.intermediate
    kept = 8 * tower.hidden + 4 * size * tower.hidden + middle
    if work.full:
        return kept + 2 * size * tower.hidden + size * tower.intermediate
    adapters = _tower_linears(work, tower)
    return kept + sum(_adapter_input(work, linear) for linear in adapters) // tower.layers
