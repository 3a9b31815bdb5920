"""The base model in NF4 (or 16 bits) and the adapter on top, through Unsloth's FastLanguageModel.

A vision model is loaded whole, under the class it was published with, its tower and projector in 16 bits. On the CPU
that is asked for here; on a GPU FastLanguageModel hands such a checkpoint to FastModel, which does it by itself and
returns the processor, whose tokenizer is used (read in Unsloth's source; not run on a GPU).

The same calls serve a GPU and the CPU. What can be refused is refused from the model's
config, before weights are read; what was loaded is checked against what was asked for,
because loaders fall back (to 16 bits, to another repository) with no more than a line of log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings, EngineSettings, ModelSettings, TrainSettings
from qdora_fast.models.accepted import require_accepted
from qdora_fast.models.adapter import assert_complete
from qdora_fast.models.adapter_guard import adapted_modules, guard_saves
from qdora_fast.models.backend import captured_prints, filters_targets, loads_class, open_backend
from qdora_fast.models.base_files import folder_of, require_fitting, require_sound, shard_names
from qdora_fast.models.few_bits import layers_in_16bit, require_16bit, require_usable
from qdora_fast.models.model_class import auto_class, read_config
from qdora_fast.models.new_tokens import grow_embeddings, open_wrappers, prepare_rows, token_indices
from qdora_fast.models.stored_names import require_stored
from qdora_fast.models.targets import (
    Architecture,
    Targets,
    choose_targets,
    inspect_architecture,
    leaves_suffice,
    pattern,
)
from qdora_fast.models.tokenizer import load_tokenizer, require_fast, stop_token_ids
from qdora_fast.system.errors import ConfigError, QdoraError
from qdora_fast.system.manifest import require_unchanged
from qdora_fast.system.paths import refuse_links_out
from qdora_fast.system.remote_code import foreign_files, remote_code_allowed, unreadable


@dataclass(frozen=True)
class Base:
    """A loaded base model, nothing attached yet."""

    model: Any
    tokenizer: Any
    targets: Targets
    quantized_modules: tuple[str, ...]
    """Full names of the linear layers held in NF4."""
    revision: str | None
    """Commit of a hub model; None for local folders."""
    precision: str
    """bf16, fp16 or fp32: what the base was loaded in, and what NF4 was made from."""
    tokens: tuple[int, ...] = ()
    """Ids of the tokens that are trained (`adapter.trainable_tokens`); see new_tokens.py."""
    new_tokens: tuple[int, ...] = ()
    """Those of them that the tokenizer did not know."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: the tokenizer's EOS and the generation config's."""
        return stop_token_ids(self.model, self.tokenizer)


@dataclass(frozen=True)
class ParameterReport:
    """What is trained, in numbers of parameters."""

    lora_a: int
    lora_b: int
    magnitude: int
    tokens: int
    saved_modules: int
    total: int

    @property
    def trainable(self) -> int:
        """All trained parameters together."""
        return self.lora_a + self.lora_b + self.magnitude + self.tokens + self.saved_modules

    def __str__(self) -> str:
        parts = f"A {self.lora_a:,} + B {self.lora_b:,}"
        parts += f" + magnitudes {self.magnitude:,}" if self.magnitude else ""
        parts += f" + rows of tokens {self.tokens:,}" if self.tokens else ""
        parts += f" + modules trained in full {self.saved_modules:,}" if self.saved_modules else ""
        return f"{self.trainable:,} trained parameters ({parts}), {self.trainable / self.total:.2%} of the model"


def check_base(name: str, model: ModelSettings, adapter: AdapterSettings, *, merge_base: str) -> Targets:
    """Read the base's config.json alone and refuse what cannot work, before weights are read.

    Args:
        merge_base: `export.merge_base`; `auto` where nothing will be merged.

    Returns:
        The layers that get an adapter.

    Raises:
        ConfigError: see `read_architecture`.
        RefusedError: see `targets.choose_targets`, `accepted.require_accepted` and `stored_names.require_stored`.
    """
    architecture = read_architecture(name, model, adapter, merge_base=merge_base)
    targets = choose_targets(architecture, adapter)
    require_accepted(architecture, targets, adapter)
    require_stored(name, model.revision, targets.modules)
    if model.base_16bit:
        require_stored(model.base_16bit, None, targets.modules)
    kept = layers_in_16bit(name, read_config(name, model.revision).to_dict(), targets.modules)
    if not kept:
        return targets
    summary = f"{targets.summary}; {len(kept)} of them in 16 bits, as this base stores them, the others in 4"
    return replace(targets, summary=summary, in_16bit=kept)


def read_architecture(name: str, model: ModelSettings, adapter: AdapterSettings, *, merge_base: str) -> Architecture:
    """The base's layers by its config.json alone, if its weights are of a kind that the method can take.

    Raises:
        ConfigError: not found, pickled weights, or not a text model.
        IntegrityError: files that are missing, damaged, or of two models.
        RefusedError: 4-bit weights where the method or `merge_base` needs 16 bits.
    """
    require_sound(name, model.revision)
    if model.base_16bit:
        require_sound(model.base_16bit, setting="model.base_16bit: ")
        require_16bit(model.base_16bit, folder_of(model.base_16bit), setting="model.base_16bit: ")
    model_config = _read_config(name, model.revision)
    require_usable(name, model_config.to_dict(), model, adapter, merge_base=merge_base)
    _refuse_unsafe_files(name)
    architecture = inspect_architecture(model_config)
    require_fitting(name, model.revision, model_config, architecture.model_class)
    if model.base_16bit:
        require_fitting(model.base_16bit, None, model_config, architecture.model_class)
    return architecture


def load_reference(name: str, *, setting: str) -> tuple[Any, Any]:
    """A plain language model and its tokenizer, for scoring rows; on the GPU where there is one.

    Raises:
        ConfigError: not there; `setting` says who named it.
    """
    import torch

    require_sound(name, setting=setting)
    tokenizer, _ = load_tokenizer(name, None, setting=setting)
    gpu = torch.cuda.is_available()
    described = read_config(name, None, setting=setting)
    with foreign_files("safetensors weights", name, setting=setting):
        model = auto_class(described).from_pretrained(
            name,
            dtype=torch.bfloat16 if gpu else torch.float32,
            use_safetensors=True,
            trust_remote_code=remote_code_allowed(),
        )
    return model.to("cuda" if gpu else "cpu").eval(), tokenizer


def load_base(
    name: str,
    model: ModelSettings,
    adapter: AdapterSettings,
    train: TrainSettings,
    *,
    targets: Targets,
    precision: str,
) -> Base:
    """Load base and tokenizer; NF4 with double quantisation for qdora and qlora.

    Args:
        targets: from `check_base`; with a quantised method all of them must load in 4 bits, but those that the base
            stores in 16.
        precision: bf16, fp16 or fp32, the type of computation and of unquantised weights.

    Raises:
        ConfigError: weights that cannot be read, or pickled ones.
        QdoraError: the weights did not load in the form that was asked for.
    """
    unsloth = open_backend()
    import torch
    from safetensors import SafetensorError

    _refuse_unsafe_files(name)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    try:
        with captured_prints(), _published_class(name, model.revision, targets):
            loaded, tokenizer = unsloth.FastLanguageModel.from_pretrained(
                model_name=name,
                max_seq_length=model.length,
                dtype=dtype,
                load_in_4bit=adapter.quantized,
                load_in_16bit=not adapter.quantized,
                revision=model.revision,
                use_safetensors=True,  # never a pickle
                trust_remote_code=remote_code_allowed(),
                use_exact_model_name=True,  # Unsloth would otherwise swap in a repository of its own
                use_gradient_checkpointing=checkpointing(train),
            )
    except (OSError, SafetensorError, JSONDecodeError) as error:
        require_sound(name, model.revision)  # which names the file, where it came down a moment ago
        raise unreadable("safetensors weights", name, model.revision, error) from None
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of the processor of a vision model
    if not remote_code_allowed():  # what did not run is not handed on with the adapter
        tokenizer.init_kwargs.pop("auto_map", None)
    require_fast(name, tokenizer)
    quantized = tuple(_linear4bit_names(loaded))
    _compute_in(loaded, dtype)
    missing = set(targets.modules) - set(quantized) - set(targets.in_16bit)
    if adapter.quantized and missing:
        raise QdoraError(
            f"asked for NF4, but {len(missing)} of {len(targets.modules)} layers to adapt were loaded in 16 bits "
            f"(first: {sorted(missing)[0]}); bitsandbytes cannot quantise this model here. Use method "
            f"`{'dora' if adapter.decomposed else 'lora'}` for a 16-bit base"
        )
    revision = getattr(loaded.config, "_commit_hash", None)
    return Base(loaded, tokenizer, targets, quantized, revision, precision)


def attach(base: Base, settings: AdapterSettings, train: TrainSettings) -> Any:
    """Put the adapter on the base, guard its saves, and return the PEFT model ready to train."""
    unsloth = open_backend()
    options: dict[str, Any] = {}
    if settings.modules_to_save:
        options["modules_to_save"] = list(settings.modules_to_save)
    if base.tokens:
        options["trainable_token_indices"] = token_indices(base)
    with captured_prints():
        model = unsloth.FastLanguageModel.get_peft_model(
            base.model,
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.decomposed,
            bias="none",
            random_state=train.seed,
            use_gradient_checkpointing=checkpointing(train),
            **_targets_for_peft(base.model, base.targets),
            **options,
        )
    adapted = set(adapted_modules(model))
    if adapted != set(base.targets.modules):
        odd = sorted(adapted ^ set(base.targets.modules))
        raise QdoraError(f"adapters were put on other layers than asked for; the first that differs: {odd[0]}")
    prepare_rows(model, base)
    guard_saves(model)
    return model


def fuse_layers(model: Any, settings: EngineSettings, *, saved: bool = False) -> Any:
    """Put the fused forward and backward into a PEFT model; see engine/. `saved`: its adapter was read from a file.

    Returns:
        EngineReport: what was fused, and what was left to PEFT and why.

    Raises:
        ConfigError: no LoRA layers, or `engine.require` and something was left to PEFT.
    """
    from qdora_fast.engine import install
    from qdora_fast.engine.patch import EngineError

    try:
        return install(model, **settings.model_dump(), saved=saved)
    except EngineError as error:
        raise ConfigError(str(error)) from None


def load_trained(
    name: str,
    saved: Path,
    model: ModelSettings,
    adapter: AdapterSettings,
    train: TrainSettings,
    engine: EngineSettings,
    *,
    precision: str,
) -> tuple[Base, Any]:
    """The base with the adapter of the folder `saved` on it, in evaluation mode, for export and chat.

    Raises:
        ConfigError, RefusedError, QdoraError: see `check_base` and `load_base`.
        IntegrityError: the adapter is incomplete, or not as it was saved; PEFT itself would load it.
    """
    open_backend()  # before anything that imports peft
    require_unchanged(saved)
    complete = assert_complete(saved, decomposed=adapter.decomposed)
    targets = check_base(name, model, adapter, merge_base="auto")
    base = load_base(name, model, adapter, train, targets=targets, precision=precision)
    from peft import PeftModel

    grow_embeddings(base.model, complete.vocabulary)
    adapted = PeftModel.from_pretrained(base.model, str(saved))
    open_wrappers(adapted)
    guard_saves(adapted)
    fuse_layers(adapted, engine, saved=True)  # another processor's norms differ in their last bits
    return base, adapted.eval()


def parameter_report(model: Any) -> ParameterReport:
    """Count trained parameters by kind; 4-bit weights are counted unpacked."""
    counts = {"lora_A": 0, "lora_B": 0, "lora_magnitude_vector": 0, "trainable_tokens_delta": 0, "saved": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = next((kind for kind in counts if f".{kind}." in name), "saved")
            counts[kind] += parameter.numel()
    _, total = model.get_nb_trainable_parameters()
    a, b, magnitude, tokens, saved = counts.values()
    return ParameterReport(a, b, magnitude, tokens, saved, int(total))


def checkpointing(train: TrainSettings) -> str | bool:
    """`train.gradient_checkpointing` as Unsloth takes it: "unsloth", True or False."""
    import torch

    choice = train.gradient_checkpointing
    if choice == "auto":
        choice = "unsloth" if torch.cuda.is_available() else "off"
    return "unsloth" if choice == "unsloth" else choice == "torch"


def _read_config(name: str, revision: str | None) -> Any:
    """The base's config, of Transformers; the newest where it is on a hub, which later readers find here."""
    open_backend()
    from transformers import AutoConfig

    with foreign_files("config", name, revision):
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=remote_code_allowed())


def _compute_in(model: Any, dtype: Any) -> None:
    """Have stored 4-bit layers unpack to, and compute in, the type of this run, and not in the one that their maker
    wrote down: merge and proof read the weights in the run's type, and a GPU may lack theirs."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = module.weight.quant_state.dtype = dtype


def _published_class(name: str, revision: str | None, targets: Targets) -> AbstractContextManager[None]:
    """On the CPU: have a vision model loaded as such."""
    import torch

    if torch.cuda.is_available() or not targets.beside:
        return nullcontext()
    return loads_class(auto_class(read_config(name, revision)), targets.beside)


def _targets_for_peft(model: Any, targets: Targets) -> dict[str, Any]:
    """Arguments that name the layers to adapt: leaves where they name these layers alone, else one pattern.

    A pattern reaches PEFT as it is in all of Unsloth's paths (`FastLlamaModel.get_peft_model` and
    `FastBaseModel.get_peft_model` keep a string; read, not run on a GPU). Leaves are what servers and users read most
    easily in adapter_config.json, so they stay where they mean the same.
    """
    if filters_targets() or not leaves_suffice(targets, (name for name, _ in model.named_modules())):
        return {"target_modules": pattern(targets.modules)}
    return {
        "target_modules": list(targets.leaves),
        "layers_to_transform": list(targets.layers) if targets.layers else None,
    }


def _refuse_unsafe_files(name: str) -> None:
    """Raise ConfigError for pickled weights, RefusedError for links out, in a base that is a folder."""
    if Path(name).is_dir():
        shard_names(Path(name))  # refuses pickles, and an index that leads elsewhere
        refuse_links_out(Path(name))


def _linear4bit_names(model: Any) -> Iterator[str]:
    """Names of all NF4 layers; also switches off bitsandbytes' CPU repacking."""
    from bitsandbytes.nn import Linear4bit

    from qdora_fast.engine.frozen import set_repacking

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            set_repacking(module, False)
            yield name
