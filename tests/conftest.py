"""Shared by all tests: no hub, Unsloth imported first, a fresh cache only where a test asks for it."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it: a test that reaches for the hub fails
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from qdora_fast.backend import open_backend

open_backend()
