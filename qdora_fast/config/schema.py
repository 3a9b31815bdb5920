"""A whole run, section by section: model, adapter, training, engine, export, evaluation; `data` is data.py."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from qdora_fast.config.data import DataSettings
from qdora_fast.config.evaluation import EvaluationSettings
from qdora_fast.config.fields import Count, Real, Section, auto_or, number

Method = Literal["qdora", "dora", "qlora", "lora"]
Optimizer = Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
Tracker = Literal["none", "trackio", "tensorboard", "wandb", "mlflow"]
MergeBase = Literal["auto", "original16", "dequant4"]


def _gib(value: object) -> object:
    """`auto`, `off`, or GiB as a positive number; said in one message, not one for each kind."""
    if value in ("auto", "off") or (isinstance(number(value), int | float) and float(str(value)) > 0):
        return value
    raise ValueError("expected auto, off, or a number of GiB above 0")


class RunSettings(Section):
    """Where a run's files go."""

    name: str | None = None
    """Folder name under `dir`; the config file's own name when empty. An existing run is
    never overwritten: the next free `name-2`, `name-3`, ... is taken and said."""
    dir: str = "runs"
    """Folder that holds all runs."""

    @field_validator("name")
    @classmethod
    def _plain_folder_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("use letters, digits, '.', '_' and '-' only (it becomes a folder name)")
        return name


class ModelSettings(Section):
    """The base model."""

    name: str
    """Hub id, local folder, or `demo` for the embedded tiny base that needs no download."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the newest when empty. Pin it for repeatable runs."""
    base_16bit: str | None = None
    """Hub id or folder of the same weights in 16 bits, for `export.merge_base: original16`.
    Empty means `name` itself; needed only when `name` exists in 4 bits alone."""
    max_length: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=16, le=1_048_576)],
        auto_or("a number of tokens from 16 to 1,048,576", least=16, most=1_048_576),
    ] = 2048
    """Longest row in tokens, prompt and answer together. auto: as long as the rows need and as the card allows."""

    @property
    def length(self) -> int:
        """`max_length` as a number: what `auto` became."""
        assert self.max_length != "auto", "auto was not resolved"
        return self.max_length


class AdapterSettings(Section):
    """What is trained on top of the base."""

    method: Method = "qdora"
    """qdora: DoRA on a 4-bit NF4 base. dora: DoRA on a 16-bit base. qlora, lora: the same without DoRA."""
    r: Count = Field(16, ge=1, le=1024)
    """Rank of the update B·A."""
    alpha: Real = Field(16, gt=0)
    """Scale of the update: alpha / r, or alpha / sqrt(r) with `rslora`."""
    dropout: Real = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input of the update. 0 is fastest; 0.05-0.1 helps small sets."""
    rslora: bool = False
    """Rank-stabilised scale alpha / sqrt(r) (Kalajdzievski 2023), for ranks of 64 and more."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear`: every linear layer of the blocks, without output head and embeddings;
    or a list such as [q_proj, v_proj]."""
    layers: str | None = None
    """Blocks to adapt, counted from 0, both ends included: "0-15" or "8,10,12-15"; empty: all."""
    modules_to_save: list[str] = Field([])
    """Modules trained in full and stored in the adapter, for instance [lm_head]. Costs memory."""
    init_adapter: str | None = None
    """Run or adapter folder whose weights a new run starts from; everything else starts anew. Not `--resume`."""

    @field_validator("layers")
    @classmethod
    def _readable_range(cls, layers: str | None) -> str | None:
        if layers is not None:
            layer_indices(layers)
        return layers

    @property
    def decomposed(self) -> bool:
        """True for DoRA: magnitude and direction are trained apart."""
        return self.method in ("qdora", "dora")

    @property
    def quantized(self) -> bool:
        """True when the base is held in 4-bit NF4."""
        return self.method in ("qdora", "qlora")


class TrainSettings(Section):
    """The optimisation."""

    learning_rate: Real = Field(2e-4, gt=0, le=1)
    """Peak learning rate of A (and of B without LoRA+), per optimizer step."""
    loraplus_ratio: Annotated[Real, Field(ge=1)] | None = None
    """LoRA+: learning rate of B = ratio × `learning_rate` (the paper uses 16). Empty: off."""
    magnitude_learning_rate: Annotated[Real, Field(gt=0, le=1)] | None = None
    """Learning rate of DoRA's magnitudes; empty: `learning_rate`, never times the LoRA+ ratio."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup: Real = Field(0.05, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: Real = Field(0.01, ge=0, le=1)
    """AdamW's decay, on A and B only; magnitudes are never decayed."""
    max_grad_norm: Real = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_nonfinite: Count = Field(3, ge=1)
    """Steps in a row whose loss or gradients are NaN or infinite, after which training ends; ten times as many in all.
    Each is skipped: no weight changes, and its rows are named."""
    epochs: Real = Field(2.0, gt=0)
    """Passes over the training rows; `max_steps` wins when set."""
    max_steps: Annotated[Count, Field(ge=1)] | None = None
    """Optimizer steps; empty: by `epochs`."""
    batch_size: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], auto_or("a whole number from 1 up")] = 2
    """Rows (or packed sequences) per forward pass on the device. auto: of the sizes that divide `effective_batch` and
    fit with a margin, the one that should train fastest."""
    gradient_accumulation: Annotated[Count, Field(ge=1)] | None = None
    """Forward passes per optimizer step. Empty: effective_batch / batch_size; 8 where that is empty as well."""
    effective_batch: Annotated[Count, Field(ge=1)] | None = None
    """Rows (or packed sequences) per optimizer step: what decides the result, where batch_size decides speed and
    memory. Empty: batch_size × gradient_accumulation, or 16 with `batch_size: auto`."""
    vram: Annotated[Real, Field(gt=0, le=1024)] | None = None
    """GiB of the card that a run may take, the CUDA context included; empty: all of it. `plan` counts with it, too."""
    probe: bool = True
    """On a GPU, make two steps and an evaluation on the longest rows before step 1, and put everything back: what does
    not fit shows then, and not hours later."""
    packing: bool = True
    """Put several short rows into one sequence of `model.max_length`; they do not see each other."""
    gradient_checkpointing: Literal["auto", "unsloth", "torch", "off"] = "auto"
    """Recompute activations in the backward pass to save memory. auto: unsloth on a GPU, off on the CPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Compute type. auto: bf16 where the GPU has it, fp16 on older GPUs, fp32 on the CPU."""
    optimizer: Optimizer = "auto"
    """auto: paged_adamw_8bit on a GPU, adamw on the CPU."""
    eval_steps: Annotated[Count, Field(ge=1)] | None = None
    """Held-out loss every so many optimizer steps; empty: five times a run."""
    save_steps: Annotated[Count, Field(ge=1)] | None = None
    """Checkpoint every so many optimizer steps; empty: with each evaluation."""
    early_stopping: Annotated[Count, Field(ge=1)] | None = None
    """Stop after so many evaluations without a better held-out loss, and keep the best; empty: off."""
    tracker: Tracker = "none"
    """Experiment tracker besides metrics.jsonl. `none` sends nothing anywhere."""
    seed: Count = Field(42, ge=0, lt=2**32)
    """Seed of adapter initialisation, row order, dropout and held-out choice."""

    @model_validator(mode="after")
    def _one_effective_batch(self) -> TrainSettings:
        accumulation, rows = self.gradient_accumulation, self.effective_batch
        if self.batch_size == "auto":
            if accumulation is not None:
                raise ValueError(
                    f"batch_size: auto chooses gradient_accumulation, too; leave {accumulation} out and say "
                    "effective_batch, the rows of an optimizer step"
                )
        elif rows is not None and rows % self.batch_size:
            raise ValueError(f"effective_batch {rows} is not a multiple of batch_size {self.batch_size}")
        elif rows is not None and accumulation not in (None, rows // self.batch_size):
            product = f"batch_size {self.batch_size} × gradient_accumulation {accumulation}"
            raise ValueError(f"effective_batch {rows} is not {product}; leave one of the three out")
        return self

    @property
    def micro_batch(self) -> int:
        """`batch_size` as a number: what `auto` became."""
        assert self.batch_size != "auto", "auto was not resolved"
        return self.batch_size

    @property
    def accumulation(self) -> int:
        """Forward passes per optimizer step."""
        if self.gradient_accumulation is not None:
            return self.gradient_accumulation
        return 8 if self.effective_batch is None else self.effective_batch // self.micro_batch

    @property
    def rows_per_step(self) -> int:
        """The effective batch: rows, or packed sequences, per optimizer step."""
        if self.effective_batch is not None:
            return self.effective_batch
        return 16 if self.batch_size == "auto" else self.batch_size * self.accumulation

    def in_pieces_of(self, size: int) -> TrainSettings:
        """The same effective batch with another batch size, which must divide it."""
        sizes = {"batch_size": size, "gradient_accumulation": None, "effective_batch": self.rows_per_step}
        return self.model_copy(update=sizes)


class EngineSettings(Section):
    """How adapted layers are computed. The result is the same function; speed and memory are not."""

    impl: Literal["auto", "triton", "torch", "reference", "peft", "off"] = "auto"
    """auto: fused layers, by Triton kernels on a GPU and their PyTorch twins on the CPU. triton, torch: one of
    them. reference: plain autograd, slow. peft: PEFT's own forward with exact initial magnitudes. off: PEFT's."""
    form: Literal["auto", "merged", "folded"] = "auto"
    """merged: the update goes into the unpacked weight, for long batches. folded: it is added to the output, for
    short ones. auto: by the number of tokens."""
    resident: Annotated[Literal["auto", "off"] | float, BeforeValidator(_gib)] = "auto"
    """Keep the merged weights of as many layers as fit: auto, off, or GiB. Saves making them for every product."""
    peft_dropout: bool = False
    """PEFT's form of dropout on DoRA layers, which costs one more product with the base weight; for comparisons."""
    require: bool = False
    """Fail when an adapted layer cannot be fused, instead of leaving it to PEFT and saying so."""


class ExportSettings(Section):
    """What a run leaves behind besides the adapter."""

    at_end: Literal["merged_16bit", "none"] = "merged_16bit"
    """Written when training ends; `qdora-fast export` makes the same later."""
    merge_base: MergeBase = "auto"
    """original16: merge into the original 16-bit weights. dequant4: into the 4-bit weights that
    training saw, which reproduces it exactly but keeps the 4-bit noise. auto: original16, unless
    the held-out loss says that it costs 0.02 nats or 10 % of what tuning gained; then dequant4."""
    proof_rows: Count = Field(16, ge=1, le=1024)
    """Held-out rows on which trained and exported model are compared."""


class Config(Section):
    """A whole run."""

    run: RunSettings = RunSettings()
    model: ModelSettings
    adapter: AdapterSettings = AdapterSettings()
    data: DataSettings
    train: TrainSettings = TrainSettings()
    engine: EngineSettings = EngineSettings()
    export: ExportSettings = ExportSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Config:
        if self.export.merge_base == "dequant4" and not self.adapter.quantized:
            raise ValueError(
                f"export.merge_base: dequant4 needs a 4-bit base, but adapter.method is `{self.adapter.method}`; "
                "use original16, or method qdora / qlora"
            )
        if self.train.early_stopping and self.data.held_out == 0 and not self.data.held_out_path:
            raise ValueError("train.early_stopping watches the held-out loss, but data.held_out is 0")
        if self.train.magnitude_learning_rate and not self.adapter.decomposed:
            raise ValueError(f"train.magnitude_learning_rate: method `{self.adapter.method}` has no magnitudes")
        return self


def layer_indices(layers: str) -> list[int]:
    """Turn "0-3,8" into [0, 1, 2, 3, 8].

    Raises:
        ValueError: not of that form, or a range that runs backwards.
    """
    chosen: set[int] = set()
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise ValueError(f'cannot read {part!r}; write layers as "0-15" or "8,10,12-15"')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"range {part.strip()!r} runs backwards")
        if last >= 10_000:
            raise ValueError(f"no model has a block {last}")
        chosen.update(range(first, last + 1))
    return sorted(chosen)
