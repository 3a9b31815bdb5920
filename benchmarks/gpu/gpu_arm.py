"""One task of the GPU protocol in a process of its own: `python -m benchmarks.gpu.gpu_arm SPEC OUT`.

A fresh process for each arm, because Unsloth patches its surroundings when imported and an allocator remembers its
past. SPEC and OUT are JSON files. The tasks:

checkpoint  write the random model, once
gate        ours against the fp64 oracle on this device, with stock PEFT as the yardstick (gate.py)
arm         load the random model with Unsloth, attach the adapter, install the engine if the arm is ours, train
kernels     each kernel against its roofline

Training here is the bare loop of a trainer: autocast, labels into the model, backward, optimizer step. No data
loader, no clipping, no logging; they would cost all arms the same.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.arms import ARMS, GPU_ARMS, Arm
from benchmarks.engine.cases import Case
from benchmarks.engine.measure import spread, synchronize
from benchmarks.gpu.gpu_model import DTYPE
from benchmarks.options import GpuOptions
from qdora_fast.engine.frozen import set_repacking
from qdora_fast.models.backend import captured_prints, open_backend
from qdora_fast.models.out_of_memory import release_memory

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 1e-5
LEAST_WARMUP, LEAST_STEPS = 2, 3
WARMUP_SHARE = 0.35


def main(spec_path: str, out_path: str) -> None:
    """Run the task in SPEC, write its result to OUT."""
    begun = time.monotonic()
    spec = json.loads(Path(spec_path).read_text())
    values = spec["options"]
    options = GpuOptions(**{**values, "shapes": tuple(map(tuple, values["shapes"])), "arms": tuple(values["arms"])})
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if options.cap_gib is not None and options.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(options.cap_gib * 2**30 / torch.cuda.mem_get_info()[1])
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "checkpoint": lambda: write_checkpoint(options),
        "gate": lambda: gate(options),
        "arm": lambda: train(spec["arm"], options, spec["folder"], begun + spec["seconds"]),
        "kernels": lambda: kernels(options),
    }
    result = tasks[spec["task"]]()
    Path(out_path).write_text(json.dumps({**result, "seconds": time.monotonic() - begun}))


def write_checkpoint(options: GpuOptions) -> dict[str, Any]:
    """See gpu_model.py."""
    from benchmarks.gpu.gpu_model import checkpoint

    return {"folder": str(checkpoint(options))}


def kernels(options: GpuOptions) -> dict[str, Any]:
    """See gpu_kernels.py."""
    from benchmarks.gpu.gpu_kernels import rooflines

    return rooflines(options)


def gate(options: GpuOptions) -> dict[str, Any]:
    """One layer of the model's width, and a narrow model of two layers, in the dtype of training."""
    from benchmarks.engine.gate import check
    from benchmarks.engine.subjects import build

    narrow = min(options.hidden, 1024)
    shared: dict[str, Any] = {"dtype": "bf16", "grad_accum": 1, "rank": options.rank, "device": options.device}
    cases = (
        Case("linear", width=options.hidden, tokens=512, **shared),
        Case("model", width=narrow, tokens=128, layers=2, checkpointing=True, **shared),
    )
    found = {str(case): check([build(case, arm) for arm in ARMS]).as_dict() for case in cases}
    return {"passed": all(each["passed"] for each in found.values()), "cases": found}


def train(name: str, options: GpuOptions, folder: str, deadline: float) -> dict[str, Any]:
    """Every shape of the protocol with one arm, within the time it was given."""
    arm = next(arm for arm in GPU_ARMS if arm.name == name)
    model = load(arm, options, folder)
    report: dict[str, Any] = {}
    if arm.install is not None:
        from qdora_fast.engine import install

        report = install(model, **arm.install).as_dict()
    optimizer = _optimizer(model, options)
    shapes = []
    for number, shape in enumerate(options.shapes):
        left = max(0.0, deadline - time.monotonic())
        seconds = left / 3 if number < len(options.shapes) - 1 else left
        shapes.append(measure(model, optimizer, shape, options, seconds))
    result: dict[str, Any] = {"engine": report, "shapes": shapes}
    if arm.ours:
        from benchmarks.engine.session import resident_bytes
        from benchmarks.engine.subjects import not_ours

        result |= {"strangers": not_ours(model, report), "resident_bytes": resident_bytes(model)}
    return result


def load(arm: Arm, options: GpuOptions, folder: str) -> Any:
    """The random model with the arm's adapter on it, as a user of Unsloth makes it."""
    unsloth = open_backend()
    from benchmarks.engine.subjects import move_adapters

    with captured_prints():
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            use_safetensors=True,
            trust_remote_code=False,
            model_name=folder,
            max_seq_length=max(tokens for _, tokens, _ in options.shapes),
            dtype=DTYPE,
            load_in_4bit=True,
            use_exact_model_name=True,
            use_gradient_checkpointing="unsloth",
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=options.rank,
            lora_alpha=options.rank,
            lora_dropout=0.0,
            target_modules=LINEARS,
            bias="none",
            use_dora=arm.dora,
            use_gradient_checkpointing="unsloth",
            random_state=options.seed,
        )
    for module in model.modules():
        set_repacking(module, False)
    move_adapters(model, options.seed)
    return model.train()


def measure(
    model: Any, optimizer: Any, shape: tuple[int, int, int], options: GpuOptions, seconds: float
) -> dict[str, Any]:
    """Warm up, then step until there are enough steps or the time is over."""
    rows, tokens, grad_accum = shape
    generator = torch.Generator().manual_seed(options.seed + 3)
    batches = torch.randint(3, options.vocabulary, (grad_accum, rows, tokens), generator=generator).to(options.device)
    first = first_micro_batch(model, batches[0], options)
    optimizer.zero_grad(set_to_none=True)
    if options.device == "cuda":
        release_memory()
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    warmup = _until(
        lambda: step(model, optimizer, batches, options), options.warmup, LEAST_WARMUP, begun + WARMUP_SHARE * seconds
    )
    samples = _until(lambda: step(model, optimizer, batches, options), options.steps, LEAST_STEPS, begun + seconds)
    time_of_step = spread(samples)
    cuda = options.device == "cuda"
    return {
        "rows": rows,
        "tokens": tokens,
        "grad_accum": grad_accum,
        "warmup_steps": len(warmup),
        "step_s": time_of_step.median,
        "step_s_spread": time_of_step.as_dict(),
        "samples": samples,
        "tokens_per_s": rows * tokens * grad_accum / time_of_step.median,
        "max_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "max_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        **first,
    }


def first_micro_batch(model: Any, ids: Tensor, options: GpuOptions) -> dict[str, Any]:
    """Loss and gradient norms of one micro-batch: arms with the same adapter must agree on them. Also counts the
    kernels it launches, on a GPU and for all layers, after one run to compile what is compiled lazily."""
    from benchmarks.engine.operations import launches

    losses = _micro_batch(model, ids, 1, options)
    norms = {
        kind: float(
            nn.utils.get_total_norm(
                [p.grad for name, p in model.named_parameters() if kind in name and p.grad is not None]
            )
        )
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector")
    }
    counted = launches(lambda: _micro_batch(model, ids, 1, options)) if options.device == "cuda" else None
    return {"first_loss": losses, "gradient_norms": norms, "launches_per_micro_batch": counted}


def step(model: Any, optimizer: Any, batches: Tensor, options: GpuOptions) -> None:
    """One optimizer step over [grad-accum, rows, tokens]."""
    for ids in batches:
        _micro_batch(model, ids, len(batches), options)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _micro_batch(model: Any, ids: Tensor, grad_accum: int, options: GpuOptions) -> float:
    with torch.autocast(options.device, DTYPE):
        loss = model(input_ids=ids, labels=ids).loss / grad_accum
    loss.backward()
    return float(loss.detach()) if grad_accum == 1 else 0.0  # reading it waits for the GPU: not inside a step


def _until(run: Callable[[], None], most: int, least: int, deadline: float) -> list[float]:
    samples: list[float] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    while len(samples) < least or (len(samples) < most and time.monotonic() < deadline):
        synchronize(device)
        begun = time.perf_counter()
        run()
        synchronize(device)
        samples.append(time.perf_counter() - begun)
    return samples


def _optimizer(model: Any, options: GpuOptions) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(trained, lr=LEARNING_RATE)


if __name__ == "__main__":
    main(*sys.argv[1:])
