"""`python -m benchmarks`: see cli.py."""

from benchmarks.cli import main

if __name__ == "__main__":
    main()
