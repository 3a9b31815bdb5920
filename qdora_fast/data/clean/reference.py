"""What a reference model makes of each answer: its loss after the question, and its loss alone.

Both are means over the trained tokens of a row, in nats. Their difference is what the question does for the
answer (`quality` decides what follows from that). For the two to be comparable, the token ids are the same in
both readings, and an answer that stands alone does so after BOS: answers that are tokenised again, or whose first
token nothing precedes, are measured against something else. Each answer of a conversation stands alone by itself.

Readings of similar length share a forward pass, padded on the right, where a causal model does not see the padding:
up to rounding, a row's score does not depend on its company. Every row is read once, and its answers once more,
without gradients: about half of what an epoch of training on the same rows takes.

Scores are kept in a plain array file, so that no model is needed to decide again with other limits.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qdora_fast.config import QualitySettings
from qdora_fast.data.loss import token_losses
from qdora_fast.data.store import Example
from qdora_fast.data.tokenize.masking import IGNORED
from qdora_fast.system.atomic import staged_file
from qdora_fast.system.errors import ConfigError, DataError

_LOGIT_BYTES = 32 * 2**20  # of fp32 copies at a time; the log-softmax of a copy takes as much again


@dataclass(frozen=True)
class Score:
    """What the model makes of one row's answers, as mean losses in nats per trained token."""

    conditional: float
    """Each token given everything before it in the row."""
    alone: float
    """The same tokens, each answer alone after BOS."""
    answer_tokens: int

    @property
    def log_ifd(self) -> float:
        """How much the question hinders, in nats per token; negative where it helps."""
        return self.conditional - self.alone

    @property
    def ifd(self) -> float:
        """exp(conditional - alone): below 1 the question helps to predict the answer."""
        return math.exp(min(self.log_ifd, 700.0))  # exp(710) is beyond a float


class _Reading(NamedTuple):
    """One pass of the model over tokens [start, end) of a row; `alone`: after BOS, nothing else before them."""

    row: int
    start: int
    end: int
    alone: bool

    @property
    def length(self) -> int:
        """Tokens that the model is given."""
        return self.end - self.start + self.alone


def score(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: QualitySettings,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> list[Score | None]:
    """Read every answer after its question and alone. The model is left as it was found.

    Args:
        model: a causal language model on its device, used as it stands (with its adapters, if it has any).
        tokenizer: the one that made the examples; its BOS, else its EOS, opens an answer that stands alone.
        examples: from `render`: `input_ids` and `labels` of equal length, -100 where nothing is learned.
        settings: `min_answer_tokens` and `batch_tokens` are used. A longer row makes a batch of its own.
        on_rows: called after each forward pass with the number of rows that it finished.

    Returns:
        One score a row; None for rows with too few trained tokens, and for those that are trained from the start.

    Raises:
        ConfigError: a tokenizer with neither BOS nor EOS.
        DataError: a loss that is not finite.
    """
    opener = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if opener is None:
        raise ConfigError("data.quality needs a tokenizer with BOS or EOS; set eos_token in its tokenizer_config.json")
    answers = [_answers(example, opener, settings.min_answer_tokens) for example in examples]
    readings = [_Reading(row, 0, spans[-1][1], False) for row, spans in enumerate(answers) if spans]
    readings += [_Reading(row, *span, True) for row, spans in enumerate(answers) for span in spans]
    waiting = Counter(reading.row for reading in readings)
    if on_rows and len(waiting) < len(examples):
        on_rows(len(examples) - len(waiting))

    sums = np.zeros((len(examples), 2))  # of the losses after the question, and alone
    with _evaluating(model):
        for batch in _batches(readings, settings.batch_tokens):
            losses = _losses(model, [_tokens(reading, examples[reading.row], opener) for reading in batch])
            for reading, loss in zip(batch, losses, strict=True):
                _refuse_not_finite(loss, reading.row)
                sums[reading.row, int(reading.alone)] += loss
            finished = Counter(reading.row for reading in batch)
            waiting -= finished
            if on_rows:
                on_rows(sum(row not in waiting for row in finished))
    counts = [sum(end - start for start, end in spans) for spans in answers]
    return [
        Score(float(after) / count, float(alone) / count, count) if count else None
        for (after, alone), count in zip(sums, counts, strict=True)
    ]


def save_scores(path: Path, scores: Sequence[Score | None]) -> None:
    """Write scores as a .npy array [rows, 3] of float64: conditional, alone, tokens; NaN where there is none.

    The file gets its name when it is complete.
    """
    nothing = (math.nan, math.nan, math.nan)
    table = [(s.conditional, s.alone, s.answer_tokens) if s else nothing for s in scores]
    with staged_file(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, np.array(table, dtype=np.float64).reshape(-1, 3), allow_pickle=False)


def load_scores(path: Path) -> list[Score | None] | None:
    """What `save_scores` wrote, exactly; None without such a file, or with one that is damaged."""
    try:
        with path.open("rb") as file:
            table = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # ValueError: another kind of file, a cut one, or pickled objects
        return None
    if not isinstance(table, np.ndarray) or table.dtype != np.float64 or table.ndim != 2 or table.shape[1] != 3:
        return None
    values: list[list[float]] = table.tolist()
    if not all(map(math.isfinite, itertools.chain.from_iterable(row for row in values if not _is_nothing(row)))):
        return None
    return [None if _is_nothing(row) else Score(row[0], row[1], int(row[2])) for row in values]


def _is_nothing(row: Sequence[float]) -> bool:
    return all(map(math.isnan, row))


def _answers(example: Example, opener: int, fewest: int) -> list[tuple[int, int]]:
    """Trained token ranges, end exclusive; empty for a row that is not to be scored."""
    trained = [False, *(label != IGNORED for label in example["labels"]), False]
    edges = [at for at in range(len(trained) - 1) if trained[at] != trained[at + 1]]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    without_question = bool(spans) and (spans[0][0] == 0 or example["input_ids"][: spans[0][0]] == [opener])
    return [] if without_question or sum(end - start for start, end in spans) < fewest else spans


def _batches(readings: Sequence[_Reading], most_tokens: int) -> Iterator[list[_Reading]]:
    """Readings of similar length, at most `most_tokens` with padding; the longest first, so that memory runs out at
    once or never."""
    batch: list[_Reading] = []
    for reading in sorted(readings, key=lambda each: (-each.length, each)):
        if batch and (len(batch) + 1) * batch[0].length > most_tokens:
            yield batch
            batch = []
        batch.append(reading)
    if batch:
        yield batch


def _tokens(reading: _Reading, example: Example, opener: int) -> tuple[list[int], list[int]]:
    """Token ids of a reading and their labels."""
    ids, labels = (example[name][reading.start : reading.end] for name in ("input_ids", "labels"))
    return ([opener, *ids], [IGNORED, *labels]) if reading.alone else (ids, labels)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; each module goes back to the mode it was in.

    Not inference mode: some models keep tensors made on the way (long-context rotations), and training could not use
    them afterwards.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _losses(model: Any, sequences: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Sum of the losses at the labels of each sequence, in nats; one forward pass."""
    import torch

    shape = (len(sequences), max(len(ids) for ids, _ in sequences))  # [B, T]
    inputs, labels, mask = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64), np.zeros(shape, np.int64)
    for at, (ids, own) in enumerate(sequences):
        inputs[at, : len(ids)], labels[at, : len(ids)], mask[at, : len(ids)] = ids, own, 1
    owners, positions = np.nonzero(labels[:, 1:] != IGNORED)  # the token at position t is predicted at t - 1
    tensors = [torch.from_numpy(array).to(model.device) for array in (inputs, mask)]
    logits = model(input_ids=tensors[0], attention_mask=tensors[1], use_cache=False).logits.flatten(0, 1)  # [B * T, V]

    at_once = max(1, _LOGIT_BYTES // (4 * logits.shape[-1]))
    places = torch.from_numpy(owners * shape[1] + positions).to(model.device)
    wanted = torch.from_numpy(labels[owners, positions + 1]).to(model.device)
    losses = [
        token_losses(logits[place], label).cpu()
        for place, label in zip(places.split(at_once), wanted.split(at_once), strict=True)
    ]
    summed = np.bincount(owners, weights=torch.cat(losses).numpy(), minlength=len(sequences))
    return [float(total) for total in summed]


def _refuse_not_finite(loss: float, row: int) -> None:
    if not math.isfinite(loss):
        raise DataError(
            f"the reference model gives training row {row + 1} a loss of {loss}: its weights are damaged, or their "
            "precision is too low for it; choose another data.quality.model, or set data.quality.enabled: false"
        )
