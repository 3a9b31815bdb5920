"""Real faults on the real stack, in numbers: kills, full disks, flipped bits, NaNs, foreign checkpoints, hostile files.

`make faults` runs it, `make faults ARGS="--full"` the large size. Every trial is a process of its own
that does to a training what happens to trainings, lets it go on by the command a user would type, and
looks at what is left: nothing may be lost, nothing may be silent, and the adapter at the end must be,
bit for bit, the one of a run that nothing happened to.

Reading order: `lab.py` (the run that everything happens to), `strike.py` (how it is hit in the middle
of a save), one file for each kind of fault, `matrix.py` (all of them, with their sizes), `runner.py`.
`sabotage.py` breaks our own code on purpose, because a matrix that cannot turn red says nothing.

It is no part of the installed package. What it cannot show: a GPU's own faults.
"""
