"""A plan as text: the verdict first, then why, then what to consider.

The picture is a staircase: each part's bar starts where the one above ends, on the scale of the card, so that one sees
what fills it and how much is left.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from qdora_fast.planning.cards import GIB
from qdora_fast.planning.evaluation_time import HALF
from qdora_fast.planning.history import Peak
from qdora_fast.planning.memory.estimate import Part, in_gib, in_words
from qdora_fast.planning.plan import Plan
from qdora_fast.system.console import clock, time_range

WIDTH = 36
"""Characters of a full bar: the card."""
PAGE = 116
NEXT_TO_NOTHING = 0.1
"""Of a card: below this the picture is drawn on the scale of the step."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def lines(plan: Plan) -> Iterator[str]:
    """The plan, line by line."""
    yield verdict(plan)
    if plan.limited:
        yield from _labelled("BUT", plan.limited)
    yield ""
    yield from _settings(plan)
    for number, reason in enumerate(plan.resolved.reasons):
        yield from _labelled("" if number else "Auto", reason)
    yield ""
    yield from staircase(plan)
    yield ""
    yield from _phases(plan)
    if plan.measured is not None:
        yield from _labelled("Measured", _measured(plan.measured))
    yield from _labelled("Longest", _longest(plan))
    chosen = "train.batch_size" in plan.resolved.asked
    if plan.better and plan.better.length == plan.model.length and plan.machine.on_gpu and not chosen:
        yield from _labelled("Batch", _batch(plan))
    yield from _labelled("Host", _host(plan))
    yield from _labelled("Disk", _disk(plan))
    yield from _labelled("Rows", _rows(plan))
    yield from _labelled("Time", _time(plan))
    if plan.evaluated:
        yield from _labelled("Compare", _evaluation(plan))
    job, engine = plan.estimate.job, plan.engine
    if job.on_gpu and job.ours and engine.resident == "auto" and engine.form != "folded":
        text = (
            "the engine fills most of what is left with merged weights (engine.resident: auto) and gives it back when "
        )
        yield from _labelled("Left", f"{text}memory runs short and after training, so the card will look full")
    for number, advice in enumerate(plan.advice):
        yield from _labelled("Consider" if number == 0 else "", str(advice))
    if not job.sizes.measured:
        yield from _labelled("Estimated", _estimated(plan))
    if plan.machine.on_gpu:
        yield from _labelled(
            "Assumed",
            "CUDA context 0.5 GiB, allocator gaps 5 %, Unsloth's fused loss as its code reads, attention kernels "
            f"without scores: not measured on a GPU yet, so {in_gib(plan.margin)} stay free for them (5 % of the card "
            "+ 0.3 GiB)",
        )


def verdict(plan: Plan) -> str:
    """Yes or no, with the figures."""
    card, peak = plan.machine.card, plan.estimate.peak_bytes
    where = f"{in_gib(peak)} of {in_gib(card.memory)}"
    if plan.fits:
        left = card.memory - peak
        return f"FITS      {where} at the highest ({plan.estimate.peak_phase}), {in_gib(left)} to spare: {_card(plan)}"
    needed = f"{in_gib(peak)} at the highest ({plan.estimate.peak_phase}) and {in_gib(plan.margin)} to spare"
    return f"DOES NOT FIT: it needs {needed}, of {in_gib(card.memory)}: {_card(plan)}"


def what_to_do(plan: Plan) -> str:
    """One sentence for the error of a plan that does not fit."""
    if plan.resolved.asked and plan.resolved.refusal:
        return f"{plan.name}: {plan.resolved.refusal}"
    change = next((advice.change for advice in plan.advice if advice.saves_memory), None)
    card = plan.machine.card
    remedy = f"try --set {change}" if change else "take a smaller base, or a larger card"
    needed = in_gib(plan.estimate.peak_bytes + plan.margin)
    return f"{plan.name} does not fit on {card.name}: {needed} are needed; {remedy}"


def staircase(plan: Plan) -> Iterator[str]:
    """The parts of a training step, each with its bar; on the scale of the card, unless hardly any of it is needed."""
    counted, card = plan.estimate, plan.machine.card
    step = counted.phases["step"]
    small = step < NEXT_TO_NOTHING * card.memory
    scale = step if small else max(card.memory, step)
    full = in_gib(scale) + (" (a small part of what there is)" if small else "")
    yield f"A training step in {'MiB' if scale < GIB else 'GiB'}; a full bar is {full}:"
    unit, digits = (2**20, 1) if scale < GIB else (GIB, 2)
    start = 0
    for part in counted.parts:
        yield f"  {part.name:<15}{part.bytes / unit:>7,.{digits}f}  {bar(start, part.bytes, scale)}  {part.why}"
        start += part.bytes
    yield f"  {'together':<15}{start / unit:>7,.{digits}f}  {bar(0, start, scale)}"
    if scale > card.memory:
        yield f"  {'the card':<15}{card.memory / unit:>7,.{digits}f}  {bar(0, card.memory, scale)}"


def bar(start: int, size: int, scale: int, width: int = WIDTH) -> str:
    """A bar of `size` that begins at `start`, between the edges of `scale`; at least a sliver for what is not 0."""
    first = int(start / scale * width)
    end = (start + size) / scale * width
    last, part = int(end), int((end - int(end)) * 8)
    blocks = "█" * max(0, last - first)
    tail = _EIGHTHS[part] if part and len(blocks) + first < width else ""
    if not blocks and not tail.strip():
        tail = "▏"
    return f"▕{' ' * min(first, width - 1) + blocks + tail:<{width}}▏"[: width + 2]


def preset_table(plans: Sequence[Plan]) -> Iterator[str]:
    """The presets as a Markdown table: what each needs, and the longest rows that fit at batch size 1."""
    yield "| preset | card | batch x tokens | peak | fits | longest rows at batch 1 |"
    yield "| --- | ---: | ---: | ---: | --- | ---: |"
    for plan in plans:
        train, model = plan.train, plan.model
        limit = " (the model's limit)" if _at_limit(plan) else ""
        yield (
            f"| `{plan.name}` | {plan.machine.card.memory / GIB:.0f} GiB | {train.micro_batch} x {model.length:,} "
            f"| {in_gib(plan.estimate.peak_bytes)} | {'yes' if plan.fits else 'no'} | {plan.longest:,}{limit} |"
        )


def _card(plan: Plan) -> str:
    return f"{plan.machine.card.name} ({plan.machine.why})"


def _labelled(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{label:<10}{text}", PAGE, subsequent_indent=" " * 10, break_on_hyphens=False, break_long_words=False
    )


def _settings(plan: Plan) -> Iterator[str]:
    job, sizes = plan.estimate.job, plan.estimate.job.sizes
    yield from _labelled(
        "Base",
        f"{plan.model.name}: {in_words(sizes.parameters)} parameters, {sizes.blocks} blocks "
        f"({sizes.model_type}); sizes from {plan.base_source}",
    )
    yield from _labelled("", str(plan.facts))
    yield from _labelled("Layers", job.targets)
    width = {2: "16-bit", 4: "fp32"}[job.element]
    yield from _labelled(
        "Run",
        f"{plan.adapter.method} rank {job.rank}, {job.batch_size} x {job.length:,} tokens, "
        f"{job.gradient_accumulation} times a step; {width}, checkpointing {job.checkpointing}, {job.optimizer}",
    )


def _estimated(plan: Plan) -> str:
    sizes = plan.estimate.job.sizes
    text = (
        "weights, adapter and optimizer are counted exactly; activations are on the safe side: not measured for this "
        f"family ({sizes.model_type})"
    )
    if any(block.mixer_width for block in sizes.stack):
        text += (
            ". Its recurrent blocks are counted with their kernels installed (flash-linear-attention, mamba-ssm, "
            "causal-conv1d): without them PyTorch's own take more"
        )
    return text


def _phases(plan: Plan) -> list[str]:
    counted = plan.estimate
    text = " · ".join(f"{name} {in_gib(size)}" for name, size in counted.phases.items())
    if "evaluation" in counted.phases and plan.answers:
        text += f"; the evaluation with one held-out row of full length at a time ({plan.answers} fit)"
    return _labelled("Peaks", text)


def _measured(peak: Peak) -> str:
    text = f"the longest batch of {peak.run} took {in_gib(peak.measured)}"
    if peak.estimated is None:
        return text
    return f"{text} at the highest; {in_gib(peak.estimated)} were estimated ({peak.measured / peak.estimated - 1:+.0%})"


def _at_limit(plan: Plan) -> bool:
    limit = plan.estimate.job.sizes.longest
    return limit is not None and plan.longest + 64 > limit


def _longest(plan: Plan) -> str:
    limit = plan.estimate.job.sizes.longest
    if not plan.longest:
        return "not even rows of 64 tokens fit at batch size 1"
    made_for = "" if limit is None else f" (the model was made for {limit:,})"
    return f"rows of {plan.longest:,} tokens fit at batch size 1{made_for}"


def _batch(plan: Plan) -> str:
    assert plan.better is not None
    train, better = plan.train, plan.better
    if better.batch_size == train.micro_batch:
        return f"{train.micro_batch} x {train.accumulation} is what we would take"
    why = "should be faster (not measured)" if better.batch_size > train.micro_batch else "is smaller"
    return (
        f"{better.batch_size} x {better.gradient_accumulation} instead of {train.micro_batch} x "
        f"{train.accumulation} is the same effective batch, {why}, and takes {in_gib(better.estimate.peak_bytes)}"
    )


def _host(plan: Plan) -> str:
    return _listed(plan.estimate.host, "at the most, one after another")


def _disk(plan: Plan) -> str:
    total = sum(part.bytes for part in plan.disk)
    state = "enough" if total < plan.free_disk else "NOT ENOUGH"
    return f"{_listed(plan.disk, f'{in_gib(total)} in all')}; {in_gib(plan.free_disk)} are free: {state}"


def _listed(parts: Sequence[Part], remark: str) -> str:
    if not parts:
        return "nothing worth counting"
    return f"{', '.join(f'{part.name} {in_gib(part.bytes)}' for part in parts)} ({remark})"


def _rows(plan: Plan) -> str:
    if plan.rows is None:
        return "not in local files, so not looked at; `qdora-fast data` counts them"
    rows, about = plan.rows, "" if plan.rows.exact else "about "
    train = plan.train
    length = "train.max_steps" if train.max_steps else f"{train.epochs:g} epochs"
    steps = f": {plan.steps:,} optimizer steps ({length})" if plan.steps else ""
    return (
        f"{about}{rows.rows:,} to train on before any filter, of about {rows.median_tokens:,} tokens each (median, "
        f"template not counted){steps}"
    )


def _time(plan: Plan) -> str:
    if plan.speed is None:
        how = "`make bench-gpu` measures this card" if plan.machine.on_gpu else "a first run measures it"
        return f"not measured; {how}, and each run writes its tokens/s to metrics.jsonl, where the next plan finds it"
    speed = f"{plan.speed.tokens_per_second:,.0f} tokens/s in {plan.speed.run}"
    if plan.seconds is None:
        return f"{speed}; the number of rows is not known"
    return f"training {time_range(plan.seconds)} ({speed})"


def _evaluation(plan: Plan) -> str:
    rows = f"base and tuned model are compared on {plan.evaluated:,} held-out rows"
    seconds = plan.evaluation_seconds
    if seconds is None:
        return f"{rows}; how long that takes is not measured, and the first run tells; export comes on top"
    about = f"about {clock(seconds)}"
    if plan.seconds is not None:
        share = seconds / max(1, seconds + plan.seconds[1])
        about += f", {share:.0%} of training and evaluation"
        if share > HALF:
            about += ", less with a smaller evaluation.max_rows"
    assert plan.evaluation is not None
    return f"{rows}: {about} (by {plan.evaluation.run}); export comes on top"
