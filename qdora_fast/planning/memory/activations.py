"""Bytes that tokens cost: what a block leaves alive for its backward pass, checkpoints, temporaries, the loss.

What a block leaves alive was read off PyTorch's saved-tensor hooks and written down as widths; on small models of every
supported architecture, in fp32 and in bf16, with our engine and with PEFT's layers, the tests measure it again. Where
Unsloth's own blocks run (on a GPU) its norms keep their input instead of an fp32 copy; that is read from its code.

Letters: T tokens, d hidden, q and k the widths of all query and key heads, f the width of the MLP, e bytes a value.

Of families that were not measured, blocks of the usual layers count as those of the measured ones. Any other linear
layer counts with its inputs and outputs, and where blocks differ the one that needs most is the one that is run again.

Left out: attention kernels' own workspace, and what torch.compile makes of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qdora_fast.planning.cards import GIB
from qdora_fast.planning.memory.job import Group, Job

FULL = 4
"""Bytes of an fp32 value."""
LOSS_BYTES = 16
"""Without Unsloth's fused loss, of every logit: the logit, its fp32 copy, its logarithm and its gradient."""
TILE_WORDS, LOSS_ROWS = 16_384, 4_096
"""Words and labelled tokens of a tile of Unsloth's fused loss: at most 256 MiB of fp32 logits (`_tiled_layout`)."""
SMALL_CARD = int(24.5 * GIB)
"""Up to here it works in tiles whatever the number of tokens, on larger cards from LOSS_ROWS on (`_flash_min_rows`)."""
LOSS_LOGITS, LEAST_ROWS = 512 * 151_936, 512
"""Logits and tokens of a chunk, at least, where it does not work in tiles (`fused_linear_rows`)."""
READ_BYTES = 160 * 2**20
"""Of the logits of a held-out row that are there at a time, with their fp32 copy and its logarithm: 2.5 times
`evaluation.logits.MOST_BYTES`."""
SCORE_BYTES = 12
"""Of every capped attention score, where no kernel avoids making them (Gemma 2). Read from the code, not measured."""
TORCH_BLOCK = 2**20
"""Values that the engine's PyTorch kernels, which stand in for Triton's on a CPU, take to fp32 at a time."""
UNMEASURED = 1.15
"""Of a family that was not measured, a block counts so many times what the formulas say."""
WITHOUT_KERNELS = 4
"""The same of a recurrence on the CPU: PyTorch's own Mamba keeps so many times what is counted for kernels, its own
linear attention half of that."""
SMALLEST_OFFLOAD = 2 * 2**20
"""Unsloth's checkpointing copies a block's input to the host if it is larger."""


@dataclass(frozen=True)
class Saved:
    """What a forward pass leaves behind for the backward pass."""

    card: int
    """Bytes where the model is."""
    host: int
    """Bytes in pinned host memory."""


def block_bytes(job: Job) -> int:
    """What one block leaves alive for its backward pass, without checkpointing; the most, where blocks differ."""
    return max(_block_bytes(job, group) for group in job.groups)


def _block_bytes(job: Job, group: Group) -> int:
    kept = (_norms, _attention, _inputs, _mlp, _adapters, _unusual)
    counted = job.tokens * sum(part(job, group) for part in kept) + _constant(job, group)
    return counted if job.sizes.measured else int(UNMEASURED * counted)


def saved_bytes(job: Job) -> Saved:
    """What all blocks together leave alive: everything, or with checkpointing the input of each block."""
    around = rotary_bytes(job) + job.tokens * (_norm_value(job) * job.sizes.hidden + FULL)  # and the last norm
    one = job.tokens * job.sizes.hidden * job.element
    if job.checkpointing == "off":
        return Saved(sum(group.count * _block_bytes(job, group) for group in job.groups) + around, 0)
    if job.checkpointing == "unsloth" and one > SMALLEST_OFFLOAD:
        # The last block's input stays; two buffers bring the others back, one being filled while one is used.
        return Saved(3 * one + around, (job.sizes.blocks - 1) * one)
    return Saved(job.sizes.blocks * one + around, 0)


def rotary_bytes(job: Job) -> int:
    """Cosines and sines of the positions. Unsloth's blocks make them for all that the model was made for wherever
    positions are given: for packed rows, and for answers (`LlamaModel_fast_forward`, `rope_rows`)."""
    rows = max(job.length, job.sizes.longest or 0) if job.fast_blocks else job.length
    return 2 * rows * job.sizes.head_width * job.element


def recomputed_bytes(job: Job) -> int:
    """With checkpointing, the one block that is run again in the backward pass."""
    return 0 if job.checkpointing == "off" else block_bytes(job)


def temporary_bytes(job: Job) -> int:
    """Temporaries of a block's backward pass at its widest point, the MLP.

    Ours makes h and the gradients of h, gate and up [T, f] and of input and output [T, d] while all that was saved is
    still there. PEFT's layers release it on the way, so that little is added.
    """
    hidden, intermediate = job.sizes.hidden, max(block.intermediate for block, _ in job.sizes.alike)
    if not job.ours:
        return job.tokens * job.element * (intermediate + hidden)
    temporaries = job.tokens * job.element * (3 * intermediate + 3 * hidden)
    if job.on_gpu:
        return temporaries
    return temporaries + min(TORCH_BLOCK, job.tokens * intermediate) * FULL * (3 if job.mixed else 2)


def workspace_bytes(job: Job) -> int:
    """The largest weight, unpacked for one product; PEFT's DoRA also makes B·A from an identity matrix [in, in], and
    W + s·B·A for the norm, in fp32."""
    linears = job.adapted or job.sizes.linears
    if job.ours or not job.decomposed:
        return max(linear.values for linear in linears) * job.element
    return max(job.element * linear.columns**2 + 3 * FULL * linear.values for linear in linears)


def scores_bytes(job: Job) -> int:
    """Attention scores, where they are made: only for capped attention."""
    if not job.sizes.softcapped:
        return 0
    return job.batch_size * job.sizes.heads * job.length**2 * SCORE_BYTES


def loss_bytes(job: Job, card: int | None) -> int:
    """Logits and all that comes of them at once, the last hidden state and its gradient.

    On a GPU that is Unsloth's fused loss, which never holds all logits and does not ask how much is free. Read from
    unsloth_zoo 2026.10.9, fused_losses/fused_linear.py, not measured: `_ce_impl` calls `_tiled_forward` with tiles of
    `_tiled_layout`, and an fp32 sum [rows, d]; or makes fp32 logits of `fused_linear_rows` tokens and their gradient in
    place, when the vocabulary has two tiles or fewer, in fp32, with a head that is trained, on large cards with fewer
    tokens. Cards before compute capability 8 always do the latter (0.25 GiB for 128,256 words); they count as others.

    Args:
        card: its memory in bytes. None: on the CPU, all logits at once.
    """
    gradient = job.tokens * job.sizes.hidden * job.element
    # With trained tokens, PEFT's copy of the head that has these rows in it, and the gradient of all of it
    copies = 2 * job.sizes.embedding_values * job.element if job.tokens_trained else 0
    if card is None or not job.on_gpu:
        return job.tokens * job.sizes.vocabulary * LOSS_BYTES + gradient + copies
    sizes, head = job.sizes, copies
    tiled = job.mixed and sizes.vocabulary > 2 * TILE_WORDS and (card <= SMALL_CARD or job.tokens >= LOSS_ROWS)
    if job.head_trained:  # its gradient in fp32, once more when it is scaled
        tiled, head = False, copies + 2 * FULL * sizes.embedding_values
    rows = min(LOSS_ROWS, job.tokens) if tiled else chunk_rows(job.tokens, sizes.hidden, sizes.vocabulary)
    logits = rows * (TILE_WORDS if tiled else 8 * math.ceil(sizes.vocabulary / 8)) * FULL
    return logits + rows * sizes.hidden * (FULL + job.element) + 2 * gradient + head


def chunk_rows(tokens: int, hidden: int, vocabulary: int) -> int:
    """Tokens whose logits Unsloth's fused loss makes at a time where it does not use tiles (`fused_linear_rows`)."""
    least = min(max(_power_of_two(LOSS_LOGITS / vocabulary), LEAST_ROWS), LOSS_ROWS)
    return min(max(_power_of_two(tokens * hidden / vocabulary), least), LOSS_ROWS, max(tokens, 1))


def reading_bytes(job: Job) -> int:
    """One held-out row of full length, read for its loss: a block's pass, its states twice, some logits at a time."""
    return _block_pass(job, 1) + 2 * job.length * job.sizes.hidden * job.element + READ_BYTES


def answering_bytes(job: Job, batch: int) -> int:
    """Keys and values of `batch` held-out rows of full length while they are answered, and the wider of two moments:
    one block of the prompt's pass, or the copy that decoding makes for itself (Unsloth's `alloc_decode_buffers`). To
    these come the logits of the last position. Real prompts are shorter: this is the most."""
    if not batch:
        return 0
    sizes = job.sizes
    asked, answered = (batch * _keys_and_values(job, tokens) for tokens in (job.length, job.length + job.answer_tokens))
    return asked + max(answered, _block_pass(job, batch)) + batch * sizes.vocabulary * 2 * FULL


def _keys_and_values(job: Job, tokens: int) -> int:
    """Of one row: of the blocks that attend, in each no more tokens than it looks back."""
    total = 0
    for block, count in job.sizes.alike:
        if block.attends:
            total += 2 * (block.key or job.sizes.key) * min(tokens, block.window or tokens) * count
    return total * job.element


def _block_pass(job: Job, batch: int) -> int:
    """What a block holds at once of rows that are only read: e, g and h [T, f], four times [T, d], capped scores."""
    read, sizes = replace(job, batch_size=batch), job.sizes
    width = max(3 * block.intermediate + block.routed_width + 4 * sizes.hidden for block, _ in sizes.alike)
    return read.tokens * width * job.element + scores_bytes(read)


def _power_of_two(value: float) -> int:
    """The largest one that is not above, at least 1."""
    return 1 << int(math.log2(max(value, 1)))


def _layer_by_layer(job: Job, group: Group) -> bool:
    """The MLP is not one function of ours: its layers run one after another, and more is kept between them."""
    complete = group.names >= {"gate_proj", "up_proj", "down_proj"}
    biased = any(linear.bias for linear in group.block.linears if linear.name in ("gate_proj", "up_proj"))
    return not job.ours or job.dropout or not complete or biased


def _copies(job: Job) -> bool:
    """Every adapted layer keeps an input of its own: dropped out, or cast by PEFT to fp32 and back."""
    return job.dropout or (not job.ours and job.mixed)


def _norm_value(job: Job) -> int:
    """Bytes of a value that a norm keeps of its input: an fp32 copy, or in Unsloth's blocks the input as it is."""
    return job.element if job.fast_blocks else FULL


def _norms(job: Job, group: Group) -> int:
    """The input of each norm, and a number a token."""
    sizes, block, value = job.sizes, group.block, _norm_value(job)
    wide = block.wide_norms * (value * sizes.hidden + FULL)
    per_head = value * (block.query + block.key) + FULL * (sizes.heads + sizes.kv_heads)
    return wide + per_head * block.head_norms


def _attention(job: Job, group: Group) -> int:
    """Q and K after their rotation, V, the result, and a number a head. V of a joint projection keeps all of it."""
    block = group.block
    if not block.query:
        return 0
    values = max(block.query, block.rows("q_proj")) + block.key  # Q may come with a gate
    values += block.query + 2 * block.key if block.rows("qkv_proj") else block.rows("v_proj")
    return job.element * (values + block.query) + FULL * job.sizes.heads


def _inputs(job: Job, group: Group) -> int:
    """What the adapted layers keep of their inputs, where nobody else keeps it; h is the MLP's business."""
    adapted = [linear for linear in group.adapted if linear.name in group.block.usual]
    if _copies(job):
        total = job.element * sum(linear.columns for linear in adapted if linear.name != "down_proj")
    else:
        usual = group.names & group.block.usual
        normed = int(bool(usual & {"q_proj", "k_proj", "v_proj", "qkv_proj"}))
        normed += bool(usual & {"gate_proj", "up_proj", "gate_up_proj"})
        total = job.element * normed * job.sizes.hidden
        if group.block.rows("qkv_proj"):  # its attention's result is laid out anew
            total += job.element * sum(linear.columns for linear in adapted if linear.name == "o_proj")
    if job.dropout:
        mask = 1 if job.on_gpu else FULL if not job.ours else job.element
        total += mask * sum(linear.columns for linear in group.adapted)
    return total


def _mlp(job: Job, group: Group) -> int:
    """Outputs of gate and up; layer by layer also act(gate), and h for the last layer."""
    width = group.block.columns("down_proj") if "down_proj" in group.block.usual else 0
    if not _layer_by_layer(job, group):
        return job.element * 2 * width
    return job.element * (3 + ("down_proj" in group.names)) * width


def _unusual(job: Job, group: Group) -> int:
    """Inputs and outputs of linear layers of other names, of experts, and of a recurrence."""
    block = group.block
    layers = [linear for linear in block.linears if linear.name not in block.usual and not linear.routed]
    width = block.routed_width + sum(linear.rows + linear.columns for linear in layers)
    if _copies(job):
        width += sum(linear.columns for linear in group.adapted if linear.name not in block.usual)
    return job.element * width + FULL * block.mixer_width * (1 if job.on_gpu else WITHOUT_KERNELS)


def _adapters(job: Job, group: Group) -> int:
    """With our engine, DoRA keeps the outputs that nobody else keeps. PEFT keeps x A, and for DoRA base and update."""
    if not job.ours:
        wide = 2 * sum(linear.rows for linear in group.adapted) if job.decomposed else 0
        return job.element * (job.rank * len(group.adapted) + wide)
    if not job.decomposed:
        return 0
    block = group.block
    kept_anyway = {"v_proj", "gate_proj", "up_proj", "qkv_proj", "gate_up_proj"}
    if job.fast_blocks or job.element == FULL:  # then a norm keeps its input as it is
        kept_anyway |= {"q_proj", "k_proj"} if block.head_norms else set()
        kept_anyway |= {"o_proj", "down_proj"} if block.wide_norms == 4 else set()
    return job.element * sum(linear.rows for linear in group.adapted if linear.name in block.usual - kept_anyway)


def _constant(job: Job, group: Group) -> int:
    """What a block keeps whatever the number of tokens."""
    sizes, block, total = job.sizes, group.block, 0
    if sizes.model_type.startswith("gemma") and not job.fast_blocks:  # its norms multiply by 1 + w
        total += FULL * (block.wide_norms * sizes.hidden + 2 * sizes.head_width * block.head_norms)
    if job.ours:
        return total
    if job.mixed:  # A and B, cast
        total += job.element * job.rank * sum(linear.rows + linear.columns for linear in group.adapted)
    if job.decomposed:
        total += 3 * FULL * sum(linear.rows for linear in group.adapted)
        if job.dropout:  # W, unpacked for a second product
            total += job.element * sum(linear.values for linear in group.adapted)
    return total
