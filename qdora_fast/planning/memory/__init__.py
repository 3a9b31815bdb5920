"""How much memory a run will need, by arithmetic on the base's config.json alone: no weights, no GPU, no torch.

Reading order: base.py (finds the config.json), known.py (those of well-known bases), architecture.py (what a model is
made of), job.py (a run as numbers), weights.py (what is there before a token is seen), activations.py (what tokens
cost), estimate.py (parts, and the peak of every phase), fit.py (what fits on a card).

What is counted and what is only assumed is written beside each constant. Sizes of tensors are exact and tested against
allocated ones; what a GPU adds (its context, the allocator's gaps, attention kernels) has not been measured yet.
"""
