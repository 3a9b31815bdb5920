"""Whether this machine is ready. Every check reports what it found and, where it matters, the fix.

    machine.py    Python, memory, disks, WSL                       cards.py     GPU, driver, torch, clocks
    packages.py   what is installed against what is tested         stack.py     Unsloth, bitsandbytes, Triton, attention
    selftest.py   a fused layer against the reference              hub.py       hub, token, caches
    finding.py    one result, and how a check is run alone         examine.py   all checks, and the printed page

Libraries are made to do a little of their real work, because those of this field fail in ways that a version number
does not show. The exit code serves scripts: `qdora-fast doctor && make train`. Whether a model fits into the memory
is not asked here, as that depends on the config.
"""
