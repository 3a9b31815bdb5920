"""How much memory a run will need, by arithmetic on the base's config.json alone: no weights, no GPU, no torch.

Reading order: base.py (finds the config.json), known.py (those of well-known bases), architecture.py (what a model is
made of), job.py (a run as numbers), weights.py (what is there before a token is seen), activations.py (what tokens
cost), estimate.py (parts, and the peak of every phase), fit.py (what fits on a card).

What is counted and what is only assumed is said beside each constant. Sizes of tensors are exact and tested against
allocated ones; what a GPU adds (its context, the allocator's gaps, attention kernels) has not been measured yet.
"""

from qdora_fast.planning.memory.architecture import CannotEstimate, Linear, Sizes, sizes_of
from qdora_fast.planning.memory.base import Found, base_config
from qdora_fast.planning.memory.estimate import Card, Estimate, Part, estimate, evaluation_bytes, in_gib, in_words
from qdora_fast.planning.memory.fit import Fit, best_fit, fits, longest_length, margin, most_answers
from qdora_fast.planning.memory.job import Job, job_of
from qdora_fast.planning.memory.known import known_config, known_names

__all__ = [
    "CannotEstimate",
    "Card",
    "Estimate",
    "Fit",
    "Found",
    "Job",
    "Linear",
    "Part",
    "Sizes",
    "base_config",
    "best_fit",
    "estimate",
    "evaluation_bytes",
    "fits",
    "in_gib",
    "in_words",
    "job_of",
    "known_config",
    "known_names",
    "longest_length",
    "margin",
    "most_answers",
    "sizes_of",
]
