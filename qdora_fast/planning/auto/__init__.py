"""Numbers for `train.batch_size: auto` and `model.max_length: auto`. choice.py decides, words.py says why."""

from qdora_fast.planning.auto.choice import adopt, asked_for, measuring, settle, this_machine
from qdora_fast.planning.auto.kinds import ANYWHERE, Place, RowLengths, Settled

__all__ = [
    "ANYWHERE",
    "Place",
    "RowLengths",
    "Settled",
    "adopt",
    "asked_for",
    "measuring",
    "settle",
    "this_machine",
]
