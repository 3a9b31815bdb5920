"""The embedded base: a small Llama and its tokenizer, shipped inside the package, so that nothing is downloaded.

It is a real base in every respect that matters to the code around it: `AutoModelForCausalLM` and `AutoTokenizer` load
the folder, its linear layers fit NF4's blocks of 64, and it knows things that tuning has to bring out. It is not a
language model for any other use.

The weights are shipped rather than made where they are needed, because training them gives other bits on every kind of
processor, and what tuning then reaches would differ from machine to machine. `pretrain.py` made them. Their folder
has a manifest, and is compared with it whenever the base is asked for.

A run's model.json says `demo` for this base: its path is another in each environment.
"""

from __future__ import annotations

from pathlib import Path

from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.install import installation
from qdora_fast.system.manifest import problems

DEMO = "demo"
"""The embedded base, as `model.name` and in model.json."""

FOLDER = Path(__file__).resolve().parent / "demo-base"


def demo_base() -> Path:
    """The folder of the embedded base.

    Raises:
        IntegrityError: a file is missing or has changed.
    """
    wrong = problems(FOLDER)
    if wrong:
        raise IntegrityError(
            f"the embedded demo base is not as it was shipped: {wrong[0]}"
            f"{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}; this "
            f"brings it back:\n  {installation().repairs(FOLDER)}"
        )
    return FOLDER


def recorded_name(base: str) -> str:
    """What model.json says for a base that loaders call `base`."""
    return DEMO if Path(base) == FOLDER else base


def loadable_name(recorded: str) -> str:
    """What loaders call the base that a model.json names.

    Raises:
        IntegrityError: see `demo_base`.
    """
    return str(demo_base()) if recorded == DEMO else recorded
