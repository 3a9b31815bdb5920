"""`python -m qdora_fast`: the command line, for launchers that take a module (torchrun)."""

from qdora_fast.cli import main

if __name__ == "__main__":
    main()
