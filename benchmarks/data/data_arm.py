"""One preparation in a process of its own, timed: `python data_arm.py SPEC OUT`.

The file is run by its path, not as a module of the package, so that the process holds no more than `qdora-fast data`
would: the benchmark package imports torch. Steps are timed by putting a stopwatch around the functions that
`prepare` calls, in this process only; nothing of the package is changed for it.

Tasks, by `spec["task"]`:

    prepare      `qdora_fast.data.prepare` on the rows of `spec["settings"]`
    datasketch   what the quick start of datasketch does: a signature a row, a query, no look at the rows themselves
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Spec = dict[str, Any]


class Stopwatch:
    """Adds up the seconds spent in functions, by label."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def around(self, owner: Any, name: str, label: str) -> None:
        """Time each call of the attribute `name` of a module or class from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **options)
            finally:
                self.seconds[label] += time.perf_counter() - begin

        setattr(owner, name, timed)


def prepare(spec: Spec) -> dict[str, Any]:
    """Prepare rows. With `spec["inside"]`, in this process alone and with the steps of a single row timed, too."""
    from qdora_fast.config import DataSettings
    from qdora_fast.data import choose_template
    from qdora_fast.data import prepare as prepare_rows
    from qdora_fast.data.tokenize.render import Rendering
    from qdora_fast.models.tokenizer import load_tokenizer

    settings = DataSettings.model_validate(spec["settings"])
    tokenizer, stop_ids = load_tokenizer(spec["tokenizer"], None)
    template = choose_template(tokenizer, "alpaca")
    length, fraction = spec["max_length"], settings.filters.max_fraction
    rendering = Rendering(tokenizer, length, stop_ids=stop_ids, max_fraction=fraction, template=template)
    watch = _watch_rows() if spec.get("inside") else _watch_stages()
    begin = time.perf_counter()
    prepared = prepare_rows(settings, seed=spec["seed"], rendering=rendering)
    seconds = time.perf_counter() - begin
    report = prepared.report.as_json()
    result = {"seconds": seconds, "steps": dict(watch.seconds)}
    result["report"] = {key: report[key] for key in ("rows_in", "kept", "dropped", "train", "held_out", "hash")}
    result["duplicate_ids"] = report["duplicate_ids"] and report["duplicate_ids"]["count"]
    result["tokens"] = report["tokens"]["total"]
    if spec.get("places"):
        result["train"] = [row["meta"]["source"] for row in prepared.train]
        result["held_out"] = [row["meta"]["source"] for row in prepared.held_out]
        for name in ("rejected", "duplicates"):
            lines = (prepared.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            result[name] = [json.loads(line) for line in lines]
    return result


def datasketch(spec: Spec) -> dict[str, Any]:
    """Mark each row that a MinHashLSH finds like an earlier one; the held-out rows come first."""
    from datasketch import MinHash, MinHashLSH

    begin = time.perf_counter()
    sets = list(_grams(spec["files"]))
    shingled = time.perf_counter()
    sketches = []
    for _, grams in sets:
        sketch = MinHash(num_perm=256)
        sketch.update_batch(grams)
        sketches.append(sketch)
    signed = time.perf_counter()
    index, marked = MinHashLSH(threshold=0.8, num_perm=256), []
    for (place, grams), sketch in zip(sets, sketches, strict=True):
        if grams and index.query(sketch):
            marked.append(place)
        elif grams:
            index.insert(place, sketch)
    end = time.perf_counter()
    steps = {"read and shingle": shingled - begin, "signatures": signed - shingled, "index": end - signed}
    return {"seconds": end - begin, "steps": steps, "rows": len(sets), "marked": marked}


def conversations(path: str) -> Iterator[tuple[str, Any]]:
    """Place and conversation of each row of a file that can be read, filtered by nothing.

    Raises:
        DataError: see `data.sources.open_source`.
    """
    from qdora_fast.config.data import SourceSettings
    from qdora_fast.data.clean.rejects import RejectedRow
    from qdora_fast.data.read.formats import convert
    from qdora_fast.data.read.readers import RawRow
    from qdora_fast.data.read.sources import open_source

    source = open_source(SourceSettings(path=path))
    converter = source.detection.converter()
    for raw in source.rows():
        if not isinstance(raw, RawRow):
            continue
        try:
            conversation = convert(raw.row, converter)
        except RejectedRow:
            continue
        yield raw.source, conversation


def _grams(files: list[str]) -> Iterator[tuple[str, list[bytes]]]:
    """Place and different word 5-grams of each row that can be read, folded as `prepare` folds them."""
    from qdora_fast.data.clean.similarity import canonical_text, units

    for file in files:
        for place, conversation in conversations(file):
            row: Any = {"messages": conversation.messages, "tools": None}
            said = [part.partition(": ")[2] for part in canonical_text(row).split("\x1e")]
            words = units(" ".join(said))
            runs = zip(*(words[start:] for start in range(5)), strict=False)
            yield place, list({" ".join(run).encode() for run in runs})


def _watch_stages() -> Stopwatch:
    from qdora_fast.data import cache, dataset
    from qdora_fast.data.clean import selection
    from qdora_fast.data.report.builder import ReportBuilder

    watch = Stopwatch()
    watch.around(cache, "entry", "hash the files")
    watch.around(dataset, "process_all", "read and process rows")
    watch.around(selection, "find_duplicates", "find duplicates")
    watch.around(selection, "contaminated", "check contamination")
    watch.around(dataset, "select", "all selection")
    watch.around(ReportBuilder, "write_duplicates", "report")
    watch.around(ReportBuilder, "report", "report")
    return watch


def _watch_rows() -> Stopwatch:
    from qdora_fast.data import dataset, pipeline, row_processor
    from qdora_fast.data.clean import filters, similarity
    from qdora_fast.data.tokenize.render import Renderer
    from qdora_fast.data.tokenize.template_process import be_worker

    def in_this_process(processor: Any, jobs: Iterable[Any], workers: int) -> Iterator[Any]:
        """What one worker does, where it can be timed."""
        for job in jobs:
            be_worker()
            yield processor.process(job)

    setattr(pipeline, "_in_parallel", in_this_process)  # noqa: B010 - a name of the module's own
    watch = Stopwatch()
    watch.around(row_processor, "convert", "convert")
    watch.around(filters, "check", "filter")
    watch.around(Renderer, "__call__", "tokenise and mask")
    watch.around(Renderer, "content_tokens", "count the tokens of the content")
    watch.around(similarity, "canonical_text", "fold")
    watch.around(similarity, "shingles", "shingles")
    watch.around(similarity, "signatures", "MinHash signatures")
    watch.around(row_processor, "script_of", "script")
    watch.around(row_processor.RowProcessor, "process", "all processing")
    watch.around(dataset, "process_all", "read and process rows")
    return watch


TASKS = {"prepare": prepare, "datasketch": datasketch}

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(TASKS[given["task"]](given)), encoding="utf-8")
