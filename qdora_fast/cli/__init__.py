"""What a user types: a file for each heading of `--help`, the shared options, and the entry point in main.py."""
