"""All rows of all sources through the row processor, on every core, in the order of the files.

One process reads, the others do the work: chunks of 256 rows go out, and come back in order, with no more of them
under way than there are workers to keep busy, so that memory does not grow with the file. The result is the same with
any number of workers; small sets have a single one, because starting others would take longer.

Rows that a chat template renders are always processed in a worker, for a template may have to be ended
(`tokenize/template_process.py`).

Workers are forked: they inherit the tokenizer instead of loading it again. They use no GPU and no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from qdora_fast.data.clean.rejects import DropCounter
from qdora_fast.data.read.fields import UnusedFields
from qdora_fast.data.read.readers import BadRow, RawRow, characters_in
from qdora_fast.data.read.sources import IdCheck, Source
from qdora_fast.data.row_processor import Job, RowProcessor
from qdora_fast.data.store import Chunk, RowWriter
from qdora_fast.data.tokenize.template_process import be_worker
from qdora_fast.system.errors import DataError
from qdora_fast.system.limits import BATCH_BYTES, TEMPLATE_SECONDS

ROWS_PER_CHUNK = 256
CHUNKS_IN_THIS_PROCESS = 4
"""Sets of no more chunks than this are not worth starting workers for."""
MOST_WORKERS = 8
UNDER_WAY_PER_WORKER = 3
MOST_TEXTS = 2_000

OnRows = Callable[[int], None]
"""Called with the number of rows that have been processed since the last call."""


@dataclass
class RowStatistics:
    """Counts over all rows, the dropped ones included; the rows themselves are in the writer."""

    rows_in: int = 0
    by_origin: Counter[int] = field(default_factory=Counter)
    """Rows read of each source."""
    drops: DropCounter = field(default_factory=DropCounter)
    left_out: DropCounter = field(default_factory=DropCounter)
    """Rows of which the chat template does not print something, by what that is."""
    repairs: Counter[str] = field(default_factory=Counter)
    ids: list[IdCheck] = field(default_factory=list)
    """One per source."""
    unused: list[UnusedFields] = field(default_factory=list)
    """One per source."""
    too_long: list[int] = field(default_factory=list)
    """Tokens of rows that are too long."""
    texts: list[str] = field(default_factory=list)
    """Up to 2,000 texts, evenly spread over the rows."""
    _stride: int = 1
    _seen: int = 0

    def add(self, chunk: Chunk) -> None:
        """Count one chunk."""
        for source, reason, detail in chunk.rejected:
            self.drops.count(reason, source, detail)
        for source, kind in chunk.left_out:
            self.left_out.count(kind, source)
        self.repairs.update(chunk.repairs)
        self.unused[chunk.origin].add(chunk.unused)
        self.too_long += chunk.too_long
        for text in chunk.sampled:
            if self._seen % self._stride == 0:
                self.texts.append(text)
            self._seen += 1
        while len(self.texts) > MOST_TEXTS:
            self.texts = self.texts[::2]
            self._stride *= 2


def process_all(
    sources: Sequence[Source],
    processor: RowProcessor,
    writer: RowWriter,
    *,
    workers: int | None = None,
    on_rows: OnRows | None = None,
) -> RowStatistics:
    """Read the sources one after the other, process every row, and write the usable ones.

    Args:
        workers: processes that work; None: one per core this process may use, at most 8.

    Raises:
        DataError: a file cannot be read any further, or a worker died (the system kills the largest when memory ends).
        DiskSpaceError: see `store.RowWriter`.
    """
    statistics = RowStatistics(ids=[IdCheck() for _ in sources], unused=[UnusedFields() for _ in sources])
    jobs = _jobs(sources, statistics)
    first = list(islice(jobs, CHUNKS_IN_THIS_PROCESS + 1))
    count = min(workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS), len(first))
    small = len(first) <= CHUNKS_IN_THIS_PROCESS or count == 1

    def everything() -> Iterator[Job]:
        yield from first
        yield from jobs

    chunks: Iterator[Chunk] = map(processor.process, everything())
    if processor.renders or not small:
        chunks = _in_parallel(processor, everything(), 1 if small else count)
    for chunk in chunks:
        writer.add(chunk)
        statistics.add(chunk)
        if on_rows:
            on_rows(len(chunk.columns) + len(chunk.rejected))
    writer.flush()
    return statistics


def _jobs(sources: Sequence[Source], statistics: RowStatistics) -> Iterator[Job]:
    for origin, source in enumerate(sources):
        rows = source.rows()
        while chunk := _next_rows(rows):
            for raw in chunk:
                if isinstance(raw, RawRow):
                    statistics.ids[origin].see(raw)
            job = Job(origin, statistics.rows_in + 1, chunk)
            statistics.rows_in += len(chunk)
            statistics.by_origin[origin] += len(chunk)
            yield job


def _next_rows(rows: Iterator[RawRow | BadRow]) -> list[RawRow | BadRow]:
    """`ROWS_PER_CHUNK` rows, or fewer long ones."""
    chunk: list[RawRow | BadRow] = []
    characters = 0
    for row in islice(rows, ROWS_PER_CHUNK):
        chunk.append(row)
        characters += 0 if isinstance(row, BadRow) else characters_in(row.row)
        if characters > BATCH_BYTES:
            break
    return chunk


_PROCESSOR: list[RowProcessor] = []
"""In a worker: its row processor, inherited when it was forked."""


def _in_worker(job: Job) -> Chunk:
    be_worker()
    return _PROCESSOR[0].process(job)


def _in_parallel(processor: RowProcessor, jobs: Iterable[Job], workers: int) -> Iterator[Chunk]:
    """Chunks in the order of their jobs, with a bounded number of jobs under way."""
    _PROCESSOR[:] = [processor]
    context = multiprocessing.get_context("fork")
    try:
        with _quiet_forks(), ProcessPoolExecutor(workers, mp_context=context) as pool:
            under_way: deque[Future[Chunk]] = deque()
            try:
                for job in jobs:
                    under_way.append(pool.submit(_in_worker, job))
                    if len(under_way) >= UNDER_WAY_PER_WORKER * workers:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, what waits is not begun
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died while preparing rows: memory ran out (try again with --set data.workers=1), or the "
            f"chat template computed for more than {TEMPLATE_SECONDS} s in a single step (--set data.template=alpaca)"
        ) from error
    finally:
        _PROCESSOR.clear()


@contextmanager
def _quiet_forks() -> Iterator[None]:
    """Quiet warnings about forking beside threads: the workers touch neither torch nor the tokenizer's own threads."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
