"""What the fused path and the preparation of rows are worth, measured against what people could pick instead.

Five commands stand on this package. `make bench` (engine/) runs one adapted layer and a four-layer Llama on
this machine: first the gate, which compares every arm with an independent fp64 oracle, then the clock, with all arms
interleaved in one process, then bytes and operations counted by hooks. `make bench-gpu` (gpu/) trains a
random-weight Llama-3.1-8B in fresh processes, Unsloth's own arms beside ours. `make bench-data` (data/)
prepares rows with planted duplicates and faults, datasketch beside it. `make bench-export` (export/)
exports tuned runs and shards of a 70B model's layers, PEFT's way into 4 bits beside ours.
`python -m benchmarks peft-tests` (peft_tests/) runs PEFT's own tests plain and with every model fused. Where the gate
is red no speed is given.

The arms "peft" are stock PEFT on stock bitsandbytes: Unsloth is not imported by `bench`.

    options.py      what can be asked for, with units
    cases.py        which shapes are measured
    arms.py         who competes
    subjects.py     one arm of one case, built and ready to step
    oracle.py       the same mathematics written again, dense and in fp64
    gate.py         |ours - oracle| <= |PEFT - oracle| + tolerance
    measure.py      the clock: interleaved rounds, medians, quartiles, paired ratios
    footprint.py    bytes saved for backward, bytes held, peak of counted bytes
    operations.py   GEMMs and other launches, counted
    session.py      the whole run
    table.py        the same for people
    records.py      JSON records, and the part of BENCHMARKS.md that is made from them
    gpu*.py         the GPU protocol: parent, child, random checkpoint, kernels against their roofline

    data_bench.py   rows: the whole run
    seed_text.py    different rows, as many as are asked for
    planting.py     duplicates, decoys and repeated ids among them
    faults.py       rows with one fault each
    near_pairs.py   all pairs that are similar enough, exactly
    data_arm.py     one preparation, timed; datasketch on the same rows
    process_tree.py a process of its own, its memory watched
    data_grade.py   recall, precision, and the gate
    data_table.py   the same for people

    export_bench.py exports: the whole run
    export_cases.py the runs, and a checkpoint too large to hold
    export_arm.py   one part: train, export, merge, copy, exports that must fail
    export_table.py the same for people

    suite.py        PEFT's tests, both arms, compared
    plugin.py       what fuses each model within pytest, and writes down how each test ends
    models.py       stand-ins for the hub's small models
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: child processes find this package there."""
