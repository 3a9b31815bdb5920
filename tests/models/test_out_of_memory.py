"""After training nothing that the answers need is taken, and memory that runs out then loses nothing of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loaded_models import loaded_base

from qdora_fast.config.recorded import newest_run
from qdora_fast.engine import patch
from qdora_fast.engine.patch import residency
from qdora_fast.engine.residency import Memory, Residency
from qdora_fast.evaluation.generation import encode, generate
from qdora_fast.evaluation.heldout import row_losses
from qdora_fast.exports import merged
from qdora_fast.exports.verify import recording
from qdora_fast.models import loading as loading
from qdora_fast.models.loading import attach, fuse_layers
from qdora_fast.models.out_of_memory import Batches, give_back, make_room
from qdora_fast.recipes import train as recipe
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import OutOfMemory
from qdora_fast.system.run_folder import FINISHED, RunFolder

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.99 GiB"


class Card:
    """A pretended card with room for all kept weights: what runs on it, and when its memory runs out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained = False
        self.seen: list[tuple[bool, int, int]] = []
        """Of each pass of the whole model: before the end of training, rows, bytes of kept weights."""
        self.refuses: Callable[[int, int], bool] = lambda rows, kept: False
        """Rows of a pass after training and bytes kept -> memory runs out."""
        self._patch = monkeypatch

        def on_gpu(slots: Any, choice: Any, **_: Any) -> Residency:
            return Residency(slots, choice, on_gpu=True, probe=lambda: Memory(2**40, 2**40))

        def fuse(model: Any, *settings: Any) -> Any:
            report = fuse_layers(model, *settings)
            for each in (model, model.get_base_model()):  # what is generated passes the second alone
                each.register_forward_pre_hook(lambda _, *given: self._look(model, *given), with_kwargs=True)
            return report

        def fit(*args: Any) -> None:
            theirs(*args)
            self.trained = True

        theirs = recipe.fit
        monkeypatch.setattr(patch, "Residency", on_gpu)
        monkeypatch.setattr(loading, "fuse_layers", fuse)
        monkeypatch.setattr(recipe, "fit", fit)

    def _look(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kept = residency(model)
        rows, held = kwargs["input_ids"].shape[0], kept.bytes if kept else 0
        self.seen.append((not self.trained, rows, held))
        if self.trained and self.refuses(rows, held):
            raise torch.OutOfMemoryError(NO_MEMORY)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The evidence of each export that began; nothing is merged."""
    found: list[Any] = []
    monkeypatch.setattr(merged, "export_merged", lambda folder, evidence, **_: found.append(evidence))
    return found


def _answers(run: RunFolder) -> list[Any]:
    return [(row["base"], row["tuned"]) for row in run.read_rows("evaluation/held_out_answers.jsonl")]


def test_kept_weights_are_gone_before_the_model_is_asked(tiny_config: Any, card: Card, exports: list[Any]) -> None:
    train(tiny_config(export={"at_end": "merged_16bit"}))
    during, after = ([held for training, _, held in card.seen if training is when] for when in (True, False))
    assert during[0] == 0 < during[-1]  # decided after the first step
    assert len(after) > 10 and not any(after)  # answers, losses, and what the proof records
    assert len(exports) == 1


def test_answers_that_do_not_fit_are_written_fewer_at_a_time(
    tiny_config: Any, card: Card, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tiny_config())
    card.trained, card.refuses = False, lambda rows, _: rows > 1
    capsys.readouterr()
    run = train(tiny_config())
    assert _answers(run) == _answers(whole)
    said = " ".join(capsys.readouterr().err.split())
    for fewer, more in ((2, 4), (1, 2)):  # once, not for base and tuned model apart
        told = f"memory ran out while questions were answered (CUDA out of memory); {fewer} at a time from here on"
        assert said.count(f"{told} instead of {more}") == 1
    assert (run.path / FINISHED).is_file()


def _no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(NO_MEMORY)


def test_one_answer_that_does_not_fit_costs_the_evaluation_and_not_the_run(
    tiny_config: Any, card: Card, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(export={"at_end": "merged_16bit"})
    monkeypatch.setattr("peft.PeftModelForCausalLM.generate", _no_memory)
    with pytest.raises(OutOfMemory, match="with one row at a time and nothing left to free") as ended:
        train(config)
    assert ended.value.exit_code == 31
    run = newest_run(config, "tiny")
    assert run is not None
    assert run.read_json("merged_16bit/export.json")["proof"]["passed"]
    assert (run.path / FINISHED).is_file() and (run.path / "report.html").is_file()
    assert not (run.evaluation / "evaluation.json").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "the model is not evaluated: memory ran out while questions were answered (CUDA out of memory)" in said
    assert f"the run continues with its export; evaluate it later: qdora-fast evaluate {run.path}" in said


def test_an_error_of_ours_in_the_evaluation_costs_no_export_either(
    tiny_config: Any, exports: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("peft.PeftModelForCausalLM.generate", broken)
    with pytest.raises(ZeroDivisionError, match="a bug") as ended:
        train(tiny_config(export={"at_end": "merged_16bit"}))
    assert 'raise ZeroDivisionError("a bug")' in "".join(ended.value.__notes__)  # where it happened
    assert len(exports) == 1


@pytest.mark.parametrize("fails", [1, 10**9], ids=["once", "always"])
def test_a_proof_that_cannot_be_recorded_says_how_to_export_later(
    tiny_config: Any, card: Card, exports: list[Any], monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    calls: list[int] = []

    def record(model: Any, rows: Any) -> Any:
        residency(model).admit(2**40)  # type: ignore[union-attr]
        calls.append(1)
        if len(calls) <= fails:
            raise torch.OutOfMemoryError(NO_MEMORY)
        residency(model).release()  # type: ignore[union-attr]
        return theirs(model, rows)

    theirs = recording.record
    monkeypatch.setattr(recording, "record", record)
    if fails > 1:  # whatever is given back
        monkeypatch.setattr(Residency, "release", lambda *_: 0)
    config = tiny_config(export={"at_end": "merged_16bit"}, evaluation={"max_rows": 0})
    if fails == 1:
        train(config)
        assert len(exports) == 1
        return
    with pytest.raises(OutOfMemory, match=r"export's proof .*\n.*adapter is saved in .*`qdora-fast export "):
        train(config)
    assert (newest_run(config, "tiny").adapter / "adapter_model.safetensors").is_file()  # type: ignore[union-attr]


@pytest.fixture
def loaded(tiny_config: Any) -> Any:
    config = tiny_config(engine={"resident": 1.0})
    base = loaded_base(config)
    model = attach(base, config.adapter, config.train)
    fuse_layers(model, config.engine)
    return base, model.eval()


def test_a_row_that_does_not_fit_beside_kept_weights_is_read_without_them(loaded: Any) -> None:
    _, model = loaded
    kept, notes = residency(model), []
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, {"input_ids": [9, 5, 6], "labels": [9, 5, 6]}]
    whole = row_losses(model, rows)
    assert kept is not None and kept.bytes
    hook = model.register_forward_pre_hook(lambda *_: _no_memory() if kept.bytes else None)
    found = row_losses(model, rows, Batches(model, notes.append))
    assert [loss.total for loss in found] == pytest.approx([loss.total for loss in whole], rel=1e-4)
    assert len(notes) == 1 and "of cached weights, and the same is tried again" in notes[0]
    hook.remove()
    model.register_forward_pre_hook(_no_memory)
    with pytest.raises(OutOfMemory, match="while held-out rows were read"):
        row_losses(model, rows)


def test_what_is_said_without_anybody_to_tell_it_to_is_a_warning(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    base, model = loaded
    failures = [1]
    inner = model.get_base_model()
    inner.register_forward_pre_hook(lambda *_: _no_memory() if failures and failures.pop() else None)
    generate(model, base.tokenizer, encode(base.tokenizer, ["x", "y"]), 2, 2, base.stop_ids)
    assert "memory ran out while questions were answered" in caplog.text


def test_making_room_gives_back_what_only_training_needs(loaded: Any) -> None:
    _, model = loaded
    kept = residency(model)
    assert kept is not None
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    make_room(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert kept.bytes  # on a CPU with memory to spare they make answers faster
    assert give_back(model) > 0 == give_back(model)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 16), st.integers(1, 16), st.booleans())
def test_every_item_is_done_once_in_order_and_no_batch_is_larger_than_what_fits(
    items: list[int], size: int, most: int, again: bool
) -> None:
    notes: list[str] = []
    batches = Batches(torch.nn.Linear(1, 1), notes.append)

    def work(chosen: Any) -> list[int]:
        if len(chosen) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return [2 * item for item in chosen]

    for _ in range(1 + again):
        parts = list(batches.run(items, size, work, "numbers were doubled"))
        assert [item for chosen, _ in parts for item in chosen] == items
        assert [item for _, found in parts for item in found] == [2 * item for item in items]
        assert all(len(chosen) <= min(size, most) for chosen, _ in parts)
    assert len(notes) == len(set(notes))
    assert bool(notes) == (min(size, len(items)) > most)


def test_other_errors_are_nobodys_memory() -> None:
    def work(_: Any) -> None:
        raise RuntimeError("shape '[2, 3]' is invalid for input of size 5")

    with pytest.raises(RuntimeError, match="is invalid for input"):
        list(Batches(torch.nn.Linear(1, 1)).run([1], 1, work, "x"))
