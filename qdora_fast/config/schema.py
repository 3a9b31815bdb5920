"""A whole run, section by section: model, adapter, training, engine, export, evaluation; `data` is data.py."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator

from qdora_fast.config.data import DataSettings
from qdora_fast.config.evaluation import EvaluationSettings
from qdora_fast.config.fields import Count, Real, Section, auto_or, number, short
from qdora_fast.system.limits import MODEL_LAYERS

Method = Literal["qdora", "dora", "qlora", "lora"]
Optimizer = Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
Tracker = Literal["trackio", "tensorboard", "wandb", "mlflow"]
MergeBase = Literal["auto", "original16", "dequant4"]


def _gib(value: object) -> object:
    """`auto`, `off`, or GiB as a positive number; anything else is one error."""
    if value in ("auto", "off") or (isinstance(number(value), int | float) and float(str(value)) > 0):
        return value
    raise ValueError("expected auto, off, or a number of GiB above 0")


def _listed(value: object) -> object:
    """One text is a list of one."""
    return [value] if isinstance(value, str) else value


class RunSettings(Section):
    """Where a run's files go."""

    name: str | None = None
    """Name of the run's folder under `dir`. Empty: the name of the config file. An existing run is never overwritten:
    the next free of `name-2`, `name-3`, ... is used and printed."""
    dir: str = "runs"
    """Folder that holds all runs."""
    shared: bool = False
    """Let other users of the machine read the run's folder, as far as the umask allows. Otherwise only its owner can,
    since the training rows and the answers lie in it. What `export --out` writes elsewhere can be read by all."""
    notify: Annotated[list[str], BeforeValidator(_listed)] = Field([], repr=False)
    """Addresses that get one message when `train` has ended, with how and with the scores: webhooks (https://...: ntfy,
    Slack, Discord, or any that takes JSON), or others by apprise. Write env:NAME for an address in an environment
    variable; one that is written out is left out of the run's copy of its config."""

    @field_validator("name")
    @classmethod
    def _plain_folder_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("use letters, digits, '.', '_' and '-' only (it becomes a folder name)")
        return name

    @field_validator("notify")
    @classmethod
    def _addresses(cls, notify: list[str]) -> list[str]:
        for each in notify:
            if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*|[A-Za-z][A-Za-z0-9+.-]*://\S+", each):
                raise ValueError("each must be a URL (https://host/path) or env:NAME")
        return notify

    @field_serializer("notify", when_used="json")
    def _without_secrets(self, notify: list[str]) -> list[str]:
        """Who knows an address may post there, and what is written of a run is passed on."""
        return [each for each in notify if each.startswith("env:")]


class ModelSettings(Section):
    """The base model."""

    name: str
    """Hub id, local folder, or `demo` for the embedded tiny base that needs no download."""
    revision: str | None = None
    """Branch, tag or commit of a hub model. Empty: the newest. Name a commit for runs that can be repeated."""
    base_16bit: str | None = None
    """Hub id or folder of the same weights in 16 bits, for `export.merge_base: original16`. Empty: `name` itself. Set
    it only when `name` holds 4-bit weights."""
    max_length: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=16, le=1_048_576)],
        auto_or("a number of tokens from 16 to 1,048,576", least=16, most=1_048_576),
    ] = 2048
    """Longest row in tokens, prompt and answer together. Longer rows are dropped or cut (`data.on_long`); memory grows
    with it. Rows longer than the model was made for are refused. auto: as long as the rows need, and at most what the
    model was made for and what fits into the GPU's memory."""

    @property
    def length(self) -> int:
        """`max_length` as a number, after `auto` was resolved."""
        assert self.max_length != "auto", "auto was not resolved"
        return self.max_length


class AdapterSettings(Section):
    """What is trained on top of the base."""

    method: Method = "qdora"
    """qdora: DoRA on a 4-bit NF4 base. dora: DoRA on a 16-bit base. qlora, lora: the same without DoRA."""
    r: Count = Field(16, ge=1, le=1024)
    """Rank of the update B·A. A higher rank can learn more, and takes more memory; 8 to 64 is usual."""
    alpha: Real = Field(16, gt=0)
    """The update is scaled by alpha / r, or by alpha / sqrt(r) with `rslora`. Usual: `r` or twice as much."""
    dropout: Real = Field(0.0, ge=0, lt=1)
    """Probability with which an input of the update is set to 0. 0 is fastest; 0.05 to 0.1 against overfitting on
    small sets."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(r) instead of alpha / r (rsLoRA, Kalajdzievski 2023). For ranks of 64 and
    more."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear`: every linear layer of the blocks, without output head and embeddings;
    or a list such as [q_proj, v_proj]."""
    layers: str | None = None
    """Blocks to adapt, counted from 0, both ends included: "0-15" or "8,10,12-15"; empty: all."""
    modules_to_save: list[str] = Field([])
    """Modules that are trained in full and stored in the adapter, for instance [lm_head]. Takes the memory of full
    fine-tuning for them."""
    trainable_tokens: list[Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=0)]] = Field([])
    """Tokens whose rows of the embeddings and of the output head are trained beside the adapter: turn tokens that the
    base never learned, tags of your own. By text, or by id; a text that the tokenizer lacks is added to it as a
    special token."""
    init_adapter: str | None = None
    """Folder of a run or an adapter: a new run starts from its weights, with a new optimizer and schedule. To go on
    with an interrupted run, use `--resume` instead. Empty: a fresh adapter."""

    @field_validator("layers")
    @classmethod
    def _readable_range(cls, layers: str | None) -> str | None:
        if layers is not None:
            layer_indices(layers)
        return layers

    @model_validator(mode="after")
    def _rows_trained_once(self) -> AdapterSettings:
        if self.trainable_tokens and self.modules_to_save:
            raise ValueError(
                f"trainable_tokens trains rows of the embeddings and the output head, and modules_to_save all of "
                f"{', '.join(self.modules_to_save)}: keep one of the two"
            )
        twice = [token for token in self.trainable_tokens if self.trainable_tokens.count(token) > 1]
        if twice:
            raise ValueError(f"trainable_tokens names {twice[0]!r} twice")
        return self

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
    """LoRA+: B learns at ratio × `learning_rate`; the paper uses 16. Empty: B learns at `learning_rate`."""
    magnitude_learning_rate: Annotated[Real, Field(gt=0, le=1)] | None = None
    """Learning rate of DoRA's magnitudes. Empty: `learning_rate`, without the LoRA+ ratio."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up: cosine and linear fall to 0 at the last step."""
    warmup: Real = Field(0.05, ge=0, lt=1)
    """Share of all steps, at the beginning, in which the learning rate rises from 0 to its peak."""
    weight_decay: Real = Field(0.01, ge=0, le=1)
    """AdamW's weight decay, on A and B only; magnitudes are never decayed."""
    max_grad_norm: Real = Field(1.0, gt=0)
    """Gradients whose norm over all weights is larger are scaled down to it."""
    max_nonfinite: Count = Field(3, ge=1)
    """Training fails after so many consecutive steps with a NaN or infinite loss or gradient, or after ten times as
    many in all. Each such step is skipped without changing a weight, and its rows are named."""
    epochs: Real = Field(2.0, gt=0, le=10_000)
    """Passes over the training rows. Not used where `max_steps` is set."""
    max_steps: Annotated[Count, Field(ge=1)] | None = None
    """Optimizer steps of the run. Empty: as many as `epochs` takes."""
    batch_size: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], auto_or("a whole number from 1 up")] = 2
    """Rows (or packed sequences) per forward pass on the device: a larger one is faster and takes more memory. auto: of
    the sizes that divide `effective_batch` and fit into memory with a margin, the one that should train fastest."""
    gradient_accumulation: Annotated[Count, Field(ge=1)] | None = None
    """Forward passes per optimizer step. Empty: effective_batch / batch_size; 8 where that is empty as well."""
    effective_batch: Annotated[Count, Field(ge=1)] | None = None
    """Rows (or packed sequences) per optimizer step. It shapes what is learned, while batch_size only decides speed and
    memory. Empty: batch_size × gradient_accumulation, or 16 with `batch_size: auto`."""
    vram: Annotated[Real, Field(gt=0, le=1024)] | None = None
    """GiB of GPU memory that the run may take, the CUDA context included. Empty: all of the card. `plan` uses it, too.
    Lower it when other processes share the card."""
    probe: bool = True
    """Before step 1, run two training steps and an evaluation on the longest rows, then restore everything. A run that
    does not fit into the GPU's memory so fails in the first minute, not after hours. No effect on the CPU."""
    packing: bool = True
    """Put several short rows into one sequence of `model.max_length`. Attention does not cross from one row to another.
    Faster for short rows; batch sizes then count sequences."""
    gradient_checkpointing: Literal["auto", "unsloth", "torch", "off"] = "auto"
    """Recompute activations in the backward pass to save memory. auto: unsloth on a GPU, off on the CPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of computation. auto: bf16 where the GPU has it, fp16 on older GPUs, fp32 on the CPU."""
    optimizer: Optimizer = "auto"
    """Which AdamW: 8-bit keeps its state in a quarter of the memory, paged moves it to the CPU when the GPU is full.
    auto: paged_adamw_8bit on a GPU, adamw on the CPU."""
    eval_steps: Annotated[Count, Field(ge=1)] | None = None
    """Optimizer steps between two measurements of the held-out loss. Empty: five measurements a run."""
    save_steps: Annotated[Count, Field(ge=1)] | None = None
    """Optimizer steps between two checkpoints. Empty: a checkpoint with each evaluation. Lower it where a run may be
    interrupted at any time."""
    early_stopping: Annotated[Count, Field(ge=1)] | None = None
    """Stop after so many evaluations in a row without a better held-out loss, and keep the best checkpoint. Empty:
    off."""
    tracker: Literal["none"] | Tracker | list[Tracker] = "none"
    """Experiment trackers that get the metrics as well, and the final scores: one of them, or a list such as
    [tensorboard, wandb]. none: metrics are written to metrics.jsonl alone, and nothing is sent. A tracker's package
    must be installed. A resumed run continues its curves."""
    seed: Count = Field(42, ge=0, lt=2**32)
    """Seed of the adapter's initial weights, the order of rows, dropout and the choice of held-out rows."""

    @model_validator(mode="after")
    def _one_effective_batch(self) -> TrainSettings:
        accumulation, rows = self.gradient_accumulation, self.effective_batch
        if self.batch_size == "auto":
            if accumulation is not None:
                raise ValueError(
                    f"batch_size: auto chooses gradient_accumulation, too; leave {accumulation} out and set "
                    "effective_batch, the rows of an optimizer step"
                )
        elif rows is not None and rows % self.batch_size:
            raise ValueError(f"effective_batch {rows} is not a multiple of batch_size {self.batch_size}")
        elif rows is not None and accumulation not in (None, rows // self.batch_size):
            product = f"batch_size {self.batch_size} × gradient_accumulation {accumulation}"
            raise ValueError(f"effective_batch {rows} is not {product}; leave one of the three out")
        return self

    @field_validator("tracker")
    @classmethod
    def _once_each(cls, tracker: str | list[str]) -> str | list[str]:
        if isinstance(tracker, list) and len(set(tracker)) < len(tracker):
            raise ValueError("names a tracker twice")
        return tracker

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers; [] for none."""
        chosen = self.tracker if isinstance(self.tracker, list) else [self.tracker]
        return [each for each in chosen if each != "none"]

    @property
    def micro_batch(self) -> int:
        """`batch_size` as a number, after `auto` was resolved."""
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
    """auto: fused layers, computed by Triton kernels on a GPU and by PyTorch operations on the CPU. triton, torch:
    force one of the two. reference: unfused PyTorch, slow, to compare with. peft: PEFT's own layers, with exact initial
    magnitudes. off: PEFT's own layers, unchanged."""
    form: Literal["auto", "merged", "folded"] = "auto"
    """How the update B·A is applied. merged: it is added to the unpacked weight, which is faster for many tokens.
    folded: its product is added to the layer's output, which is faster for few. auto: chosen by the number of
    tokens."""
    resident: Annotated[Literal["auto", "off"] | float, BeforeValidator(_gib)] = "auto"
    """GiB of GPU memory for keeping merged weights, which then need not be computed again for every product. auto: what
    is left free. off: none."""
    peft_dropout: bool = False
    """Apply dropout on DoRA layers as PEFT does, at the cost of one more product with the base weight. For comparisons
    with PEFT only."""
    require: bool = False
    """Fail when an adapted layer cannot be fused. Off: such layers are computed by PEFT, and listed."""


class ExportSettings(Section):
    """What a run leaves behind besides the adapter."""

    at_end: Literal["merged_16bit", "none"] = "merged_16bit"
    """Export that is made when training ends. none: only the adapter; `qdora-fast export` makes an export later."""
    merge_base: MergeBase = "auto"
    """Weights that the adapter is merged into. original16: the original 16-bit weights. dequant4: the 4-bit weights
    that training saw, which gives exactly the trained model but keeps the error of 4 bits. auto: original16, unless
    that raises the held-out loss by 0.02 nats or by 10 % of what tuning gained; then dequant4."""
    proof_rows: Count = Field(16, ge=1, le=1024)
    """Held-out rows on which the exported model is compared with the trained one. More rows make the proof slower."""


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
    chosen = bytearray(MODEL_LAYERS)
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise ValueError(f'cannot read {short(repr(part))}; write layers as "0-15" or "8,10,12-15"')
        for digits in (match[1], match[2] or ""):
            if len(digits.lstrip("0")) >= len(str(MODEL_LAYERS)):
                raise ValueError(f"no model has a block {short(digits)}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"range {part.strip()!r} runs backwards")
        chosen[first : last + 1] = b"\1" * (last + 1 - first)
    return [number for number, adapted in enumerate(chosen) if adapted]
