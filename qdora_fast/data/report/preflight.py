"""The page shown before training starts: what was read, what was decided, what will be learned.

Everything that can ruin a run in silence stands on it: rows lost, answers cut, a doubled BOS, a missing stop token,
and two rendered rows in which the learned part is marked. Text in, text out; printing is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qdora_fast.data.clean.lengths import TokenReport
from qdora_fast.data.clean.quality import QualityReport
from qdora_fast.data.clean.rejects import REASONS, Dropped, bullet_list
from qdora_fast.data.read.folders import split_in_name
from qdora_fast.data.read.messages import REPAIRS
from qdora_fast.data.report.report import STEP_OF, DataReport, SourceReport, UnusedColumn
from qdora_fast.data.report.thinking import ThinkingReport
from qdora_fast.data.tokenize.render import Preview
from qdora_fast.data.tokenize.templates import TemplateChoice
from qdora_fast.system.visible import visible

LONGEST_PIECE = 600
FILES_SHOWN = 8
WORST_SHOWN = 5
TEXTS_SHOWN, UNUSED_SHOWN = 3, 12
GREEN, RESET = "\x1b[32m", "\x1b[0m"

FLAGS = {
    "eos_appended": "answers that the template leaves open; EOS was appended",
    "no_stop_token": "answers that do not end with a stop token: the model may not learn to stop. "
    "Check eos_token and generation_config.eos_token_id against the chat template",
    "double_bos": "double BOS printed by the template; one was removed",
    "words_elsewhere": "words beside a tool call, which the template prints behind the result: they are not learned",
    "leaves_prompt": "answers that do not begin where the chat template hands over: servers ask with another text "
    "than was learned. Use another data.template, one whose answers begin with its generation prompt",
    "no_bos": "no BOS, although this tokenizer starts texts with one; check the chat template",
}


def format_preflight(
    report: DataReport,
    template: TemplateChoice | None = None,
    previews: Iterable[Preview] = (),
    *,
    colour: bool = False,
) -> str:
    """The report as plain text; `colour` marks the trained part green instead of «so»."""
    lines = [_short_places(line, report) for line in (*_rows(report), *_duplicates(report))]
    if report.tokens and template:
        lines += _tokens(report.tokens, report.per_epoch, template, report.thinking)
    if report.quality:
        lines.append(format_quality(report.quality))
    lines += [f"Note      {_short_places(note, report)}" for note in report.notes]
    lines += [f"Warning   {_short_places(warning, report)}" for warning in report.warnings]
    return "\n".join([*map(visible, lines), *_previews(previews, colour)])


def format_quality(quality: QualityReport) -> str:
    """What the reference model said, and the rows that a person should look at first."""
    dropped = ", ".join(f"{count} x {reason}: {REASONS[reason]}" for reason, count in quality.dropped.items())
    lines = [f"Quality   {quality.scored:,} rows scored, {quality.not_scored:,} not; dropped {dropped or 'none'}"]
    if quality.limited:
        lines.append(f"  - {quality.limited} more are past the limits, but data.quality.max_drop is reached")
    if quality.blind:
        lines.append(
            "  - on more than a quarter of the rows the question does not help: the model does not read this layout, "
            "so nothing was dropped"
        )
    for row in quality.worst[:WORST_SHOWN]:
        verb = "dropped" if row.dropped else "kept"
        lines.append(f"  - IFD {row.ifd:.2f}, {verb}: {row.place}: {row.prompt[-80:]!r} -> {row.answer[:80]!r}")
    return "\n".join(lines)


def _rows(report: DataReport) -> Iterator[str]:
    if len(report.sources) == 1:
        yield f"Data      {report.sources[0].path}: {report.rows_in:,} rows in, {report.kept:,} kept"
        yield from _files(report.sources[0])
    else:
        yield f"Data      {len(report.sources)} sources: {report.rows_in:,} rows in, {report.kept:,} kept"
        for source in report.sources:
            yield f"  - {source.path}: {source.rows_in:,} rows in; {_sides(source)}"
            yield from _files(source)
    for source in report.sources:
        seen = f", {source.agreement:.0%} of the first {source.checked} rows" if source.checked else ""
        yield f"Format    {source.format} ({source.why}{seen})"
        yield from _unused(source)
    if report.dropped:
        yield f"Dropped   {report.rows_in - report.kept:,} rows\n{bullet_list(_in_order(report.dropped))}"
    if report.repairs:
        yield "Mended"
        yield from (f"  - {count} x {REPAIRS[code]}" for code, count in sorted(report.repairs.items()))
    share = f" ({report.held_out / report.kept:.1%})" if report.held_out else ""
    yield f"Split     {report.train:,} to train on, {report.held_out:,} held out{share}; {report.split.groups:,} groups"
    if report.per_epoch != report.train:
        yield f"Weights   an epoch has {report.per_epoch:,} rows"


def _short_places(line: str, report: DataReport) -> str:
    """Below the line that names the sources, files are called by their names, where these tell them apart."""
    files = {name for source in report.sources for name, _ in source.files}
    names = {file: Path(file).name for file in files if "/" in file}
    if line.startswith("Data") or len(set(names.values())) < len(names):
        return line
    for file, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        line = line.replace(file, name)
    return line


def _sides(source: SourceReport) -> str:
    weight = "" if source.weight == 1 else f", {source.per_epoch:,} an epoch by weight {source.weight:g}"
    return f"{source.train:,} to train on{weight}, {source.held_out:,} held out"


def _files(source: SourceReport) -> Iterator[str]:
    if len(source.files) > 1:
        splits = {name: split_in_name(Path(name)) for name, _ in source.files}
        for name, count in source.files[:FILES_SHOWN]:
            split = splits[name] if len(set(splits.values())) > 1 else None
            doubt = f"; its name says {split}: data.held_out_path would hold it out" if split else ""
            yield f"  - {name}: {count} rows{doubt}"
        if len(source.files) > FILES_SHOWN:
            yield f"  - and {len(source.files) - FILES_SHOWN} more files"
    if source.other_splits:
        others = ", ".join(f"{name} ({split})" for name, split in source.other_splits[:FILES_SHOWN])
        more = f" and {len(source.other_splits) - FILES_SHOWN} more" if len(source.other_splits) > FILES_SHOWN else ""
        yield f"  - left out, of other splits: {others}{more}; data.held_out_path names one to hold out"
    if source.skipped:
        yield f"  - not read: {', '.join(source.skipped)}"


def _unused(source: SourceReport) -> Iterator[str]:
    """What is not learned: texts with what would read them, and labels, numbers and copies by name."""
    texts = [each for each in source.unused if each.words]
    others = [each for each in source.unused if not each.words]
    for each in texts[:TEXTS_SHOWN]:
        rows = f"{each.rows:,} of {source.read:,} rows, first {each.first}"
        yield f"Unused    {each.name}: text of {each.words:,} words a row is not used in {rows}"
    if texts:
        yield f"  - if it belongs to the question: {texts[0].fix}"
    names = [*(each.name for each in texts[TEXTS_SHOWN:]), *(_counted(each, source) for each in others)]
    if names:
        more = f" and {len(names) - UNUSED_SHOWN} more" if len(names) > UNUSED_SHOWN else ""
        yield f"Unused    {', '.join(names[:UNUSED_SHOWN])}{more}: not learned"


def _counted(unused: UnusedColumn, source: SourceReport) -> str:
    return unused.name if unused.rows == source.read else f"{unused.name} (in {unused.rows:,} of {source.read:,} rows)"


def _in_order(dropped: Iterable[Dropped]) -> list[Dropped]:
    """As rows meet the reasons, step by step."""
    order = list(STEP_OF)
    return sorted(dropped, key=lambda each: order.index(each.reason))


def _duplicates(report: DataReport) -> Iterator[str]:
    duplicates = report.duplicates
    if duplicates.exact or duplicates.near:
        largest = f"; the largest has {1 + duplicates.largest[0].size}" if duplicates.largest else ""
        groups = f"{duplicates.clusters:,} {'group' if duplicates.clusters == 1 else 'groups'}"
        yield f"Twice     {duplicates.exact:,} exact and {duplicates.near:,} near-duplicates in {groups}{largest}"
    if report.languages:
        yield f"Language  {_percentages(report.languages)} (of {report.languages_of:,} rows)"
    yield f"Version   {report.hash[:16]}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _percentages(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:6] if share >= 0.01)


def _tokens(report: TokenReport, rows: int, template: TemplateChoice, thinking: ThinkingReport | None) -> Iterator[str]:
    yield f"Template  {template.name} ({template.why})"
    if thinking:
        yield f"Thinking  {thinking.sentence}"
    yield (
        f"Tokens    {report.total:,} in {rows:,} rows, {_share(report.trained_share)} of them trained; "
        f"the longest row has {report.longest:,} of {report.max_length:,}"
    )
    yield (
        f"Packing   {report.packed_sequences:,} sequences, {report.packing_efficiency:.0%} filled "
        f"(padded batches: {report.padded_efficiency:.0%}); model.max_length: {report.suggested_max_length} would do"
    )
    cut = f"{report.truncated} answers cut at {report.max_length} tokens" if report.truncated else "no answer is cut"
    yield f"Cut       {cut}"
    problems = [f"  - {report.flags[flag]} x {text}" for flag, text in FLAGS.items() if report.flags.get(flag)]
    yield "\n".join(["Checks", *problems]) if problems else "Checks    all answers end with a stop token; no double BOS"


def _previews(previews: Iterable[Preview], colour: bool) -> Iterator[str]:
    before, after = (GREEN, RESET) if colour else ("«", "»")
    for preview in previews:
        yield f"\nRow {visible(preview.source)}; the marked part is learned:"
        pieces = ((visible(_shortened(text)), trained) for text, trained in preview.pieces)
        yield "".join(f"{before}{text}{after}" if trained else text for text, trained in pieces)


def _shortened(text: str) -> str:
    """Long texts without their middle: a preview shows where the marks are."""
    if len(text) <= LONGEST_PIECE:
        return text
    half = LONGEST_PIECE // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
