"""The page shown before training starts: what was read, what was decided, what will be learned.

Everything that can ruin a run in silence stands on it: rows lost, answers cut, a doubled BOS, a missing stop token,
and two rendered rows in which the learned part is marked. Text in, text out; printing is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qdora_fast.data.dataset import PrepareReport
from qdora_fast.data.messages import REPAIRS
from qdora_fast.data.rejects import bullet_list
from qdora_fast.data.render import Preview, RenderReport
from qdora_fast.data.templates import TemplateChoice

LONGEST_PIECE = 600
FILES_SHOWN = 8
GREEN, RESET = "\x1b[32m", "\x1b[0m"

FLAGS = {
    "eos_appended": "answers that the template leaves open; EOS was appended",
    "no_stop_token": "answers that do not end with a stop token: the model may not learn to stop. "
    "Check eos_token and generation_config.eos_token_id against the chat template",
    "double_bos": "double BOS printed by the template; one was removed",
    "no_bos": "no BOS, although this tokenizer starts texts with one; check the chat template",
}


def format_preflight(
    prepared: PrepareReport, rendered: RenderReport, template: TemplateChoice, *, colour: bool = False
) -> str:
    """The report as plain text; `colour` marks the trained part green instead of «so»."""
    return "\n".join([*_rows(prepared), *_tokens(rendered, template), *_previews(rendered.previews, colour)])


def _rows(report: PrepareReport) -> Iterator[str]:
    files = report.source.files
    yield f"Data      {report.source.path}: {report.rows_in} rows in, {report.kept} usable"
    if len(files) > 1:
        yield from (f"  - {name}: {count} rows" for name, count in files[:FILES_SHOWN])
        if len(files) > FILES_SHOWN:
            yield f"  - and {len(files) - FILES_SHOWN} more files"
    if report.source.skipped:
        yield f"  - not read: {', '.join(report.source.skipped)}"
    seen = f", {report.format.agreement:.0%} of the first {report.format.checked} rows" if report.format.checked else ""
    yield f"Format    {report.format.name} ({report.format.why}{seen})"
    if report.dropped:
        yield f"Dropped   {report.rows_in - report.kept} rows\n{bullet_list(report.dropped)}"
    if report.repairs:
        yield "Mended"
        yield from (f"  - {count} x {REPAIRS[code]}" for code, count in sorted(report.repairs.items()))
    yield f"Split     {report.train} to train on, {report.held_out} held out; {report.prompts} distinct prompts"


def _tokens(report: RenderReport, template: TemplateChoice) -> Iterator[str]:
    yield f"Template  {template.name} ({template.why})"
    yield (
        f"Tokens    {report.tokens:,} in {report.kept} rows, {report.trained_share:.0%} of them trained; "
        f"the longest row has {report.longest} of {report.max_length}"
    )
    if report.dropped:
        yield f"Not used  {report.rows_in - report.kept} of {report.rows_in} rows\n{bullet_list(report.dropped)}"
    cut = f"{report.truncated} answers cut at {report.max_length} tokens" if report.truncated else "no answer is cut"
    yield f"Cut       {cut}"
    problems = [f"  - {report.flags[flag]} x {text}" for flag, text in FLAGS.items() if report.flags.get(flag)]
    yield "\n".join(["Checks", *problems]) if problems else "Checks    all answers end with a stop token; no double BOS"


def _previews(previews: Iterable[Preview], colour: bool) -> Iterator[str]:
    before, after = (GREEN, RESET) if colour else ("«", "»")
    for preview in previews:
        yield f"\nRow {preview.place}; the marked part is learned:"
        yield "".join(
            f"{before}{_shortened(text)}{after}" if trained else _shortened(text) for text, trained in preview.pieces
        )


def _shortened(text: str) -> str:
    """Long texts without their middle: a preview shows where the marks are."""
    if len(text) <= LONGEST_PIECE:
        return text
    half = LONGEST_PIECE // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
