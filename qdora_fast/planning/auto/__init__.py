"""Numbers for `train.batch_size: auto` and `model.max_length: auto`. choice.py decides, words.py says why.

cap.py holds a process to `train.vram`.
"""

from qdora_fast.fitting.cap import cap_memory
from qdora_fast.fitting.choice import adopt, asked_for, measuring, settle, this_machine
from qdora_fast.fitting.kinds import ANYWHERE, Place, RowLengths, Settled

__all__ = [
    "ANYWHERE",
    "Place",
    "RowLengths",
    "Settled",
    "adopt",
    "asked_for",
    "cap_memory",
    "measuring",
    "settle",
    "this_machine",
]
