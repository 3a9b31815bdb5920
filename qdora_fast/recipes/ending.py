"""What a run sends to `run.notify`: one message when it has ended, however it did.

Whatever ends `run_recipe` passes by here: its last line, an error, Ctrl-C, and SIGTERM or a closed terminal, which
are turned into an exception for this while a message is wanted (during training `signals.py` has SIGTERM, and saves a
checkpoint first). SIGKILL, as the kernel sends it when memory runs out, leaves no time for a message, nor does the
second SIGTERM. Of the processes of a run the first sends.

No text of a row leaves the machine: of an error of ours its first line is sent without what it quotes; of errors in the
rows, and of those that are not ours, only their kind.
"""

from __future__ import annotations

import platform
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

from qdora_fast.config import Config
from qdora_fast.evaluation.report.run_parts import part
from qdora_fast.system import console, distributed
from qdora_fast.system.errors import DataError, QdoraError, Stopped, first_line
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.system.webhook import addresses, send

_ENDING = ("SIGTERM", "SIGHUP")
_QUOTED = re.compile(r"(?<!\w)(['\"]).*?\1(?!\w)")


class Terminated(SystemExit):
    """A signal ends the process."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@dataclass
class Ending:
    """What is known of a run when it ends."""

    name: str
    folder: RunFolder | None = None
    """Filled in when there is one."""


@contextmanager
def notifying(config: Config, name: str) -> Iterator[Ending]:
    """Send one message when the block has ended.

    Args:
        name: of the run, until it has a folder.

    Raises:
        ConfigError: an address cannot be used, see `webhook.addresses`.
    """
    ending = Ending(config.run.name or name)
    to = addresses(config.run.notify) if distributed.is_main() else []
    if not to:
        yield ending
        return
    console.line("message", f"one to {', '.join(each.name for each in to)} when this has ended (run.notify)")
    began = time.monotonic()
    error: BaseException | None = None
    with _signals_as_errors() if threading.current_thread() is threading.main_thread() else nullcontext():
        try:
            yield ending
        except BaseException as ended:
            error = ended
            raise
        finally:
            text, facts = describe(ending, error, time.monotonic() - began)
            for problem in send(to, text, facts):
                console.note(f"run.notify: {problem}")


def describe(ending: Ending, error: BaseException | None, seconds: float) -> tuple[str, dict[str, Any]]:
    """The message of an end: for people, and for programs."""
    name = ending.folder.path.name if ending.folder else ending.name
    event, code, why = _how(error)
    facts: dict[str, Any] = {"event": event, "run": name, "machine": platform.node(), "exit_code": code}
    facts["seconds"] = round(seconds, 1)
    took = f"after {console.clock(seconds)}"
    if error is None:
        facts |= final_scores(ending.folder) if ending.folder else {}
        return " ".join([f"{name} has finished {took} on {facts['machine']}.", *_sentences(facts)]), facts
    facts["message"] = why
    what = "was stopped" if event == "stopped" else "has failed"
    return f"{name} {what} {took} on {facts['machine']} (exit code {code}): {why}", facts


def final_scores(folder: RunFolder) -> dict[str, Any]:
    """What a run came to, by its files: verdict, scores of base and tuned model, losses, benchmarks, the proof. Keys of
    what was not measured are missing; nothing in it is text of a row."""
    from qdora_fast.recipes.report import read_parts

    parts = read_parts(folder)
    task, loss, mmlu = (part(parts.evaluation, key) for key in ("task", "heldout_loss", "mmlu"))
    every = {
        "verdict": task.get("verdict"),
        "metric": task.get("metric"),
        "base": task.get("base"),
        "tuned": task.get("tuned"),
        "held_out_loss_base": loss.get("base"),
        "held_out_loss_tuned": loss.get("tuned"),
        "mmlu_points": mmlu.get("delta_points"),
        "data_hash": parts.data.get("hash"),
    }
    for name, figures in part(parts.evaluation, "benchmarks").items():
        every |= {f"{name}_{side}": figures.get(side) for side in ("base", "tuned")}
    proofs = [part(each, "proof").get("passed") is True and not each["unproven"] for each in parts.exports]
    every["proven"] = all(proofs) if proofs else None
    return {key: value for key, value in every.items() if value is not None}


def _sentences(scores: Mapping[str, Any]) -> Iterator[str]:
    if "verdict" in scores:
        against = {"better": "Better than its base", "worse": "Worse than its base"}
        said = against.get(str(scores["verdict"]), "No evidence that it is better than its base")
        yield f"{said}: {scores.get('metric')} {_number(scores.get('base'))} to {_number(scores.get('tuned'))}."
    elif "held_out_loss_tuned" in scores:
        losses = (_number(scores.get(f"held_out_loss_{side}")) for side in ("base", "tuned"))
        yield "Held-out loss {} to {}.".format(*losses)
    if "proven" in scores:
        yield "The export is proven." if scores["proven"] else "The export is not the model that was trained."


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "–"


def _how(error: BaseException | None) -> tuple[str, int, str]:
    """The event, the exit code of the command, and why it ended."""
    if error is None:
        return "finished", 0, ""
    if isinstance(error, Stopped):
        return "stopped", error.exit_code, _sayable(error)
    if isinstance(error, Terminated):
        return "stopped", int(str(error.code)), f"ended by {error.name}; continue with --auto-resume"
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130, "stopped by Ctrl-C"
    if isinstance(error, DataError):
        return "failed", error.exit_code, "the rows cannot be used; the command's output says which"
    if isinstance(error, QdoraError):
        return "failed", error.exit_code, _sayable(error)
    return "failed", 1, f"{type(error).__name__}; the command's output has the rest"


def _sayable(error: QdoraError) -> str:
    """The first line of an error, without what it quotes, which may come from a row."""
    return _QUOTED.sub("…", first_line(error))


@contextmanager
def _signals_as_errors() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, once, where they would end the process without a word."""

    def raise_it(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in taken:
        signal.signal(number, raise_it)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
