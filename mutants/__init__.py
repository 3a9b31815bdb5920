"""Mutation tests: one plausible fault at a time is put into a copy of the code, and a test must fail.

`make mutants` runs the list in `faults.toml`. An entry says which text of which file becomes what, and what would
go wrong: faults that a person could make (a dropped key, a missing factor, a guard that never fires) instead of
random operators. Places are found by their text, so an entry stays right while lines move; an entry whose text is
no longer there exactly once is reported and makes the run fail.

Only the tests that stand for the changed module run (`standing.py`), until the first failure. A test that fails
without the fault as well proves nothing, so it runs once more on the unchanged code. The libraries are imported
once, and each fault is a fork (`trial.py`). A fault without any observable effect carries the reason in
`equivalent` and is counted apart.

It is no part of the installed package. Not covered: faults in `backend.py`, whose import is done before the forks.
"""
