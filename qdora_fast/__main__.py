"""`python -m qdora_fast`: the command line, for launchers that take a module.

`python -m` has put the working directory first into the search path for modules; it is taken out before anything else
is imported. What Python itself imports before that is not protected, so `qdora-fast`, which needs no such care, is the
better command (`torchrun --no-python qdora-fast train`).
"""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]
    from qdora_fast.cli.main import main

    main()
