"""One rank's micro-batch, in the numbers that the formulas for memory need."""

from dataclasses import dataclass

from workloads.plan.shapes import Linear, ModelShape


@dataclass(frozen=True)
class Work:
    """One rank's micro-batch, in the numbers that the formulas need.

    `rows` of `length` tokens, each read as so many `sequences`; the loss needs the logits of
    `scored` tokens of each. Bytes of one number: `compute` in matrix products, `stored` for a
    trained weight, `handed` for one as the forward pass gets it (FSDP2 and ZeRO hand out the
    compute type), `residual` in the stream between the layers, `frozen` for a frozen weight that is
    not quantised. `adapted` are LoRA's matrices, empty where all weights are trained; `saved` those
    that are trained whole beside them, in the compute type. keeps_logits: the caller holds the
    model's output through the backward pass. compiled: by torch.compile; offloaded: activations
    wait in host memory.
    expands: fused attention reads keys and values of every query head, as it has to on cards
    without flash attention. dequantised: bytes of a number of a quantised matrix as it is
    multiplied.
    holds_inputs: every matrix keeps its input until the step ends, checkpointing or not, as those
    in int8 do.
    """

    shape: ModelShape
    rows: int
    length: int
    scored: int
    compute: int
    stored: int
    residual: int
    full: bool
    adapted: tuple[Linear, ...] = ()
    saved: tuple[Linear, ...] = ()
    rank: int = 0
    frozen: int = 2
    handed: int = 4
    dropout: bool = False
    adapter_bytes: int = 4
    checkpointing: bool = False
    quantised: bool = False
    fused_head: bool = True
    eager: bool = False
    fp16: bool = False
    autocast: bool = True
    keeps_logits: bool = False
    compiled: bool = False
    offloaded: bool = False
    holds_inputs: bool = False
    expands: bool = False
    dequantised: int = 2
    sequences: int = 1

    @property
    def trains_head(self) -> bool:
        return self.full or any(linear.where == "head" for linear in self.saved)

    @property
    def trains_embedding(self) -> bool:
        is_saved = any(linear.where == "embedding" for linear in self.saved)
        return self.full or is_saved or (self.shape.tied and self.trains_head)

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def scored_tokens(self) -> int:
        return self.rows * self.scored

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.shape.heads * self.shape.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads together; of the values too."""
        return self.shape.kv_heads * self.shape.head_dim

    @property
    def scores(self) -> int:
        """Numbers of one layer's attention scores, which eager attention holds."""
        return self.shape.heads * self.seen_pairs if self.eager else 0

    @property
    def seen_pairs(self) -> int:
        """Pairs of tokens that attention compares."""
        return self.rows * self.length**2 // self.sequences

    @property
    def adapter_input(self) -> int:
        """Bytes of a number in an adapter's input; autocast gives it the compute type."""
        return self.compute if self.autocast else self.adapter_bytes

    @property
    def shares_inputs(self) -> bool:
        """Whether adapters read the layer's own input, without a copy.

        Over a quantised base peft leaves casting to autocast.
        """
        is_cast = self.adapter_bytes != self.compute and not (self.quantised and self.autocast)
        return not self.dropout and not is_cast and self.between == self.compute

    @property
    def norms_read_stream(self) -> bool:
        """Whether a norm keeps the stream itself, not an fp32 copy of it."""
        return self.residual == 4 or (self.shape.layer_norm and not self.autocast)

    @property
    def casts(self) -> bool:
        """Whether autocast copies every matrix and its input into the compute type."""
        return self.full and self.stored > self.compute and self.residual > self.compute

    @property
    def between(self) -> int:
        """Bytes of a number between the matrices of a layer: a quantised one gives its product in
        the type of its input."""
        return self.residual if self.quantised else self.compute
