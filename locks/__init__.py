"""What the set-up installs, by hash, and the modules that write it: `make lock` and `make lock-newest`."""
