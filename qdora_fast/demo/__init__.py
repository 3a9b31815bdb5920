"""The embedded demo: a small base model and its task, made on the spot, with no download."""
