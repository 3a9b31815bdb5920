"""Is the proof of an export right? Counted: right exports that it refuses, and wrong ones that it lets pass.

`make proofs` runs it, `make proofs ARGS="--size full"` the large size. Real runs on several bases are trained once,
their adapters kept at early and late steps, and each is exported in every form, under several processor instruction
sets and thread counts: all of these must be proven. Then the same exports are made wrongly, as real mistakes would:
all whose stored weights, tokens or settings differ from the right ones must be refused.

Reading order: `plan.py` (what is trained and exported, by size), `bases.py`, `trainings.py`, `controls.py` (the
mistakes), `work.py` (one batch of exports), `exporting.py` (all that is known here of the export's own interface),
`session.py`. `preloaded.py` keeps the libraries loaded, so that an export costs a second and not fifteen.

It is no part of the installed package. What it cannot show: a GPU's arithmetic.
"""
