"""The one door to Unsloth. Nothing else in the package imports unsloth, and whoever needs
trl or peft opens this door first.

Why a door: Unsloth replaces parts of transformers, peft and trl when it is imported, and
names that were bound before stay unpatched; so it has to come first, and an import sorter
would put it last. And it has habits a user should be protected from: a network probe at
load time that can raise after two minutes, a code cache in the working directory, and
banners. Those are switched off here, before the import, by its own documented settings.

On a machine without an accelerator Unsloth chooses its CPU backend by itself: the same
`FastLanguageModel`, with stock transformers, peft and trl below and real NF4.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from qdora_fast.system.errors import QdoraError
from qdora_fast.system.hardware import cache_folder
from qdora_fast.system.install import how_to_set_up

logger = logging.getLogger(__name__)

NO_TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")
"""Variables that libraries read; a user's own value stays."""
_MUST_COME_LATER = ("transformers", "peft", "trl")


def open_backend() -> ModuleType:
    """Import unsloth (once) with its side effects contained, and return it.

    Raises:
        QdoraError: unsloth is not installed, or transformers, peft or trl came first.
    """
    _contain_side_effects()
    if "unsloth" in sys.modules:
        _switch_off_telemetry()
        return sys.modules["unsloth"]
    too_early = [name for name in _MUST_COME_LATER if name in sys.modules]
    if too_early:
        raise QdoraError(
            f"{', '.join(too_early)} was imported before unsloth, which would then patch only half of it. "
            "Start a fresh process (restart the notebook kernel) and call qdora_fast, or `import unsloth`, first"
        )
    try:
        with captured_prints():
            unsloth = importlib.import_module("unsloth")
    except ImportError as error:
        fix = f"this sets up a tested environment:\n  {how_to_set_up()}"
        raise QdoraError(f"cannot import unsloth ({error}); {fix}") from error
    _quiet_libraries()
    _switch_off_telemetry()
    return unsloth


@contextlib.contextmanager
def captured_prints() -> Iterator[None]:
    """Send what Unsloth prints to the log, so that standard output stays for results.

    Wrap every call into Unsloth in this; `--debug` shows the log.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
            logger.info("unsloth: %s", line)


@contextlib.contextmanager
def loads_class(model_class: type[Any], skipped: Sequence[str]) -> Iterator[None]:
    """Let Unsloth's CPU backend load this class of Transformers, where it would ask for a causal language model.

    The backend knows AutoModelForCausalLM alone, and raises for vision models; all else that it does (NF4, tokenizer,
    its own loss, fallbacks of kernels) fits them, too.

    Args:
        model_class: of the checkpoint.
        skipped: full names of the parts that stay in 16 bits.
    """
    import transformers

    class Published:
        """Stands for AutoModelForCausalLM meanwhile."""

        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            if (quantization := options.get("quantization_config")) is not None:
                quantization.llm_int8_skip_modules = [*quantization.llm_int8_skip_modules, *skipped]
            trusted = options.pop("trust_remote_code", False)
            return model_class.from_pretrained(name, trust_remote_code=trusted, **options)

    usual = transformers.AutoModelForCausalLM
    transformers.AutoModelForCausalLM = Published
    try:
        yield
    finally:
        transformers.AutoModelForCausalLM = usual


def filters_targets() -> bool:
    """Whether Unsloth would choose among the layers of a list by tags in their names, as it does on a GPU outside of
    its six families (`FastBaseModel.get_peft_model`). Asked after the base is loaded. Read there; not run on a GPU."""
    return os.environ.get("UNSLOTH_USE_NEW_MODEL", "0") == "1"


def free_buffers(model: Any) -> None:
    """Free what Unsloth retains from its largest batch so far: the two buffers of its checkpointing, keys and values
    of the last answers, which stay on the attention layers. Call it where no graph is alive; a count of blocks that a
    failed forward pass left half-way starts anew."""
    checkpointing = sys.modules.get("unsloth_zoo.gradient_checkpointing")
    if checkpointing is not None and hasattr(checkpointing, "GPU_BUFFERS"):  # before, its reset fails
        checkpointing.reset_unsloth_gradient_checkpointing_buffers()
    decoding = sys.modules.get("unsloth.models._decode_graphs")
    if decoding is not None:
        decoding.release_for_training(model)


def _contain_side_effects() -> None:
    # Presence alone counts for Unsloth; a user's own value wins.
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # no probe of the network at load time
    os.environ.setdefault("UNSLOTH_DISABLE_LLM_COMPRESSOR_AUTOINSTALL", "1")  # no pip install during a save
    for name in NO_TELEMETRY:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    version = _version("unsloth")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / f"unsloth-compiled-{version}"))
    # bitsandbytes logs, on the CPU, that an optional kernel package is absent: nothing a user can act on.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _switch_off_telemetry() -> None:
    """The hub's library reads its variables when it is imported, which may have been before they were set."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    if os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":
        constants.HF_HUB_DISABLE_TELEMETRY = True


def _quiet_libraries() -> None:
    """Only warnings from here on; our own messages say what a user needs to know."""
    transformers_logging = importlib.import_module("transformers.utils.logging")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    importlib.import_module("huggingface_hub.utils").enable_progress_bars()  # a 16 GB download must be seen
    importlib.import_module("datasets").disable_progress_bars()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
