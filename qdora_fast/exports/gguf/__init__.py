"""GGUF, for llama.cpp, Ollama and LM Studio: the proven merged model, converted by the user's own llama.cpp checkout.

PyPI has no converter (its `gguf` package reads and writes the format), and the one file of llama.cpp
that converts fits only the rest of its own checkout; so the user names a checkout, and nothing is
vendored, downloaded or built here.

- `export.py`     a run → merged_16bit, proven → the checkout's tools → checks → a folder that appears whole
- `checkout.py`   the llama.cpp checkout: what is in it, which commands to run, and running them
- `check.py`      what the `gguf` reader finds in the file, against the merged model
- `modelfile.py`  Ollama's Modelfile
"""
