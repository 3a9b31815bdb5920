"""The embedded demo: a small base model, shipped with the package, and its task; nothing is downloaded."""
