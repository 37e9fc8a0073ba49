"""What a stage costs, from the shape of the model and the rows: arithmetic, bytes that are moved, memory, files.

`benchmarks/estimate.py` holds the formulas against what was measured. Nothing here imports torch, so that
`howto.doctor` can tell what is needed where torch is broken. Tokens are those of prompts and responses together.
"""

from __future__ import annotations

from dataclasses import dataclass

from howto.params.train import Lora
from howto.shapes import Shape, adapted, adapter_bytes, trainable

# As in howto.memory, howto.loss, howto.checkpoints and howto.decoding, which import torch (a test compares them).
MARGIN, OF_CHUNK, CHUNK, KEPT, ENTERING = 1.3, 3, 2**24, 2, 2**13
FORTH = 0.25  # of the passes over the activations in a training step are left where nothing is learnt
# Maps of a layer that read what another one reads.
READS_AS = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}
MUON_STEPS = 5  # of Newton and Schulz


@dataclass(frozen=True)
class Work:
    """What has to be done: floating-point operations in matrix products, and beside them bytes that go through memory.

    These are weights that are `read`, `activations` (as many bytes as training would keep; how often a step passes over
    them depends on the device), and keys and values that are looked back at (`cached`).
    """

    flops: float = 0.0
    read: float = 0.0
    activations: float = 0.0
    cached: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.read + other.read,
            self.activations + other.activations,
            self.cached + other.cached,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.read * times, self.activations * times, self.cached * times)


@dataclass(frozen=True)
class Rows:
    """Rows of a split: how many, and their tokens on average."""

    count: int
    tokens: float  # of prompt and response
    response: float  # of the response alone, end of sequence included

    @property
    def total(self) -> float:
        """Tokens of all rows."""
        return self.count * self.tokens


def forward_work(shape: Shape, lora: Lora, rows: Rows, itemsize: int, *, logits: float) -> Work:
    """A forward pass over rows, with logits at so many of each row's tokens.

    2 FLOP a weight and token (Kaplan et al. 2020, arXiv:2001.08361); causal attention multiplies each query with half
    of the keys, and as many values: 2 x wide x length.
    """
    wide = shape.heads * shape.head_size
    per_token = 2 * (shape.in_layers() + trainable(shape, lora)) + 2 * shape.layers * wide * rows.tokens
    flops = rows.total * per_token + rows.count * logits * 2 * shape.in_head()
    return Work(flops, activations=FORTH * rows.total * activation_bytes(shape, lora, itemsize, dropout=False))


def training_work(shape: Shape, lora: Lora, rows: Rows, itemsize: int, *, again: bool) -> Work:
    """Forth and back once over rows. `again`: layers are computed twice, to save memory.

    LoRA needs no gradient of a frozen weight: 2N forth and 2N back for the input's gradient, 4N a token in place of
    the usual 6N; the adapter itself costs the usual 6. Logits are computed, with their gradient, where there is a label
    and nowhere else. Attention's way back is 2.5 times its way forth (Dao 2023, arXiv:2307.08691).
    """
    wide, adapter = shape.heads * shape.head_size, trainable(shape, lora)
    per_token = 4 * shape.in_layers() + 6 * adapter + 7 * shape.layers * wide * rows.tokens
    if again:
        per_token += 2 * (shape.in_layers() + adapter) + 2 * shape.layers * wide * rows.tokens
    flops = rows.total * per_token + rows.count * rows.response * 4 * shape.in_head()
    activations = rows.total * activation_bytes(shape, lora, itemsize, dropout=lora.dropout > 0)
    return Work(flops, activations=activations * (1 + FORTH if again else 1))


def answering_work(
    shape: Shape, lora: Lora, rows: Rows, new: float, itemsize: int, *, slots: int, longest: float
) -> Work:
    """Answers of `new` tokens on average to the prompts of rows, `slots` of them in flight.

    A step reads all weights once, and each row's keys and values; the batch is full until no row waits, so there are as
    many steps as fill it, and at least as many as the `longest` answer has tokens.
    """
    prompts = Rows(rows.count, rows.tokens - rows.response, 0)
    seen = prompts.tokens + new / 2
    steps = max(longest, rows.count * new / slots)
    per_token: float = 2 * (shape.in_layers() + shape.in_head() + trainable(shape, lora))
    per_token += 4 * shape.layers * shape.heads * shape.head_size * seen
    weights = (shape.in_layers() + shape.in_head()) * itemsize
    cached = rows.count * new * seen * shape.kv_bytes_per_token(itemsize)
    enters = forward_work(shape, lora, prompts, itemsize, logits=1)
    return enters + Work(rows.count * new * per_token, read=steps * weights, cached=cached)


def pretraining_work(shape: Shape, tokens: float, *, length: int, batch: int) -> Work:
    """The embedded base model's own training: 6N a token, and Muon's orthogonalisation in every step (Jordan 2024)."""
    wide = shape.heads * shape.head_size
    per_token = 6 * (shape.in_layers() + shape.in_head()) + 12 * shape.layers * wide * length
    # A step for a matrix [m, n], m <= n: two products [m, n] x [n, m] or [m, m] x [m, n], and one [m, m] x [m, m].
    muon = 0.0
    for one, other in shape.linear().values():
        m, n = min(one, other), max(one, other)
        muon += shape.layers * MUON_STEPS * (4 * m * m * n + 2 * m**3)
    per_activation = shape.layers * (12 * shape.hidden + 4 * wide + 5 * shape.intermediate) + 3 * shape.vocabulary
    activations = FORTH * tokens * 4 * per_activation  # no dropout, and no maps of an adapter's
    return Work(tokens * per_token + tokens / (length * batch) * muon, activations=activations)


def activation_bytes(shape: Shape, lora: Lora, itemsize: int, *, dropout: bool, again: bool = False) -> float:
    """Bytes that a token keeps between the way forth and the way back, in all layers.

    Of a layer: what goes into its two norms, in float32, with a root each; queries, keys, values and the result of the
    attention, with a logarithm for each head in float32; gate, its activation and the product of the two; and of each
    adapted map what goes into it, its r numbers, and with dropout a mask. Without dropout maps that read the same
    tensor keep it once. `again`: the inputs of the layers, and all of that for one layer at a time.
    """
    wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    kept = float(2 * wide + 2 * narrow + 3 * shape.intermediate)
    inputs: dict[str, int] = {}
    for name, (size, _) in shape.linear().items():
        if adapted(name, lora):
            kept += lora.r
            inputs[name if dropout else READS_AS.get(name, name)] = size
    kept += sum(inputs.values()) * (2 if dropout else 1)
    layer = kept * itemsize + 4 * (2 * shape.hidden + shape.heads + 2)
    turns = 2 * shape.head_size * itemsize  # the rotary positions' cosines and sines, which all layers share
    if again:
        return layer + turns + shape.layers * shape.hidden * itemsize
    return shape.layers * layer + turns


def training_memory(
    shape: Shape,
    lora: Lora,
    itemsize: int,
    *,
    tokens: float,
    response: float,
    again: bool,
    shards: int = 1,
    margin: float = 1.0,
) -> float:
    """Bytes that training holds at most; `tokens` (`response` of them with a label) are those of a micro-batch.

    With a `margin` of MARGIN it is what has to be there: the stage starts with no less beside weights and adapter.

    The base's weights; of the adapter itself, its gradient, AdamW's two moments and the kept one, all float32; the
    activations, with the gradients of the widest ones beside them; and a chunk of logits, three times. `shards`: so
    many devices each hold a part of the weights, and two layers as a whole while these are computed.
    """
    resident, whole_layers = shape.parameters() * itemsize, 0
    if shards > 1:
        resident, whole_layers = resident // shards, 2 * shape.in_layers() // shape.layers * itemsize
    resident += 4 * trainable(shape, lora)
    kept = activation_bytes(shape, lora, itemsize, dropout=lora.dropout > 0, again=again)
    wide = 4 * shape.intermediate * itemsize
    logits = OF_CHUNK * 4 * min(CHUNK, response * shape.vocabulary)
    return resident + margin * (whole_layers + 4 * 4 * trainable(shape, lora) + tokens * (kept + wide) + logits)


def answering_memory(shape: Shape, lora: Lora, itemsize: int, *, slots: int, longest: float) -> float:
    """Bytes that inference holds at most: weights, adapter, keys and values of all slots, and the entering prompts."""
    slots_bytes = slots * longest * shape.kv_bytes_per_token(itemsize)
    entering = min(ENTERING, slots * longest) * 4 * (shape.hidden + shape.intermediate) * itemsize
    logits = OF_CHUNK * 4 * max(slots * shape.vocabulary, min(CHUNK, ENTERING * shape.vocabulary))
    return shape.parameters() * itemsize + 4 * trainable(shape, lora) + slots_bytes + entering + logits


def checkpoint_bytes(shape: Shape, lora: Lora) -> int:
    """On disk while training goes on: the weights, those that are kept, and two moments; the last two checkpoints, and
    one that is being written."""
    return (KEPT + 1) * 4 * adapter_bytes(shape, lora)
