"""The documentation, and the modules that write parts of it from the code."""
