"""Kept W': who may, that nothing but memory changes, and that it is given back without harm."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    EPS,
    bound,
    close,
    exact_layer,
    loss_and_gradients,
    one_layer,
    random_x,
    run_layer,
    tiny_lm,
    tokens,
)
from torch import Tensor

from qdora_fast.engine import install, uninstall
from qdora_fast.engine import residency as module_of_residency
from qdora_fast.engine.cache import CLOCK, Scratch, Slot
from qdora_fast.engine.frozen import Nf4
from qdora_fast.engine.patch import residency
from qdora_fast.engine.residency import Memory, Residency, card_memory

GIB = 2**30
SIZES = [4000, 1000, 3000, 1000]


def _residency(choice: Any, probe: Callable[[], Memory] | None = None, **how: Any) -> tuple[Residency, list[Slot]]:
    slots = [Slot(size, torch.bfloat16) for size in SIZES]
    return Residency(slots, choice, **{"on_gpu": False, "probe": probe, **how}), slots


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine is doing."""
    monkeypatch.setattr(module_of_residency, "machine_memory", lambda: Memory(2**40, 2**40))
    monkeypatch.setattr(module_of_residency, "LOOK_EVERY", 0.0)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a pretended GPU can be given back."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.parametrize(
    ("kib", "allowed"),
    [
        (1.9, [False, False, False, False]),
        (2, [False, True, False, False]),  # equal ones in the model's order
        (9.9, [False, True, False, True]),
        (10, [False, True, True, True]),
        (100, [True, True, True, True]),
    ],
)
def test_the_smallest_layers_come_first_within_a_budget(kib: float, allowed: list[bool]) -> None:
    kept, slots = _residency(kib * 1000 / GIB)
    assert [slot.allowed for slot in slots] == allowed
    assert kept.layers == sum(allowed)
    assert kept.bytes == 2 * sum(size for size, yes in zip(SIZES, allowed, strict=True) if yes) <= kib * 1000
    kept.close()


def test_off_keeps_nothing_and_asks_nobody() -> None:
    def probe() -> Memory:
        raise AssertionError("asked")

    kept, _ = _residency("off", probe)
    CLOCK.advance()
    assert (kept.layers, kept.bytes) == (0, 0)


def test_auto_on_a_cpu_takes_half_of_what_is_free() -> None:
    kept, _ = _residency("auto", lambda: Memory(free=20_000, total=10**6))
    assert kept.bytes == 2 * (1000 + 1000 + 3000)
    kept.close()


def test_auto_on_a_gpu_decides_once_after_the_first_step() -> None:
    free = [10_000]
    kept, _ = _residency("auto", lambda: Memory(free=free[0], total=20_000), on_gpu=True)
    assert kept.layers == 0
    CLOCK.advance()
    assert kept.bytes == 4000  # 10,000 less 5 % of 20,000; the third would make 10,000
    free[0] = 10**6
    CLOCK.advance()
    assert kept.bytes == 4000
    kept.close()


def test_what_others_use_of_a_card_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    share = 1.0
    figures = {
        "mem_get_info": lambda: (13, 24),  # 11 are in use, 10 of them by PyTorch: 1 by the context, by other programs
        "memory_reserved": lambda: 10,
        "max_memory_reserved": lambda: 15,
        "get_per_process_memory_fraction": lambda: share,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)
    assert card_memory() == Memory(free=24 - 1 - 15, total=24)
    share = 0.75  # of the card, for PyTorch alone
    assert card_memory() == Memory(free=18 - 15, total=1 + 18)


def test_room_is_made_before_a_model_is_asked() -> None:
    free = [10**6]
    on_card, _ = _residency(1.0, lambda: Memory(free[0], 10**6), on_gpu=True)
    here, _ = _residency(1.0, lambda: Memory(free[0], 10**6))
    undecided, _ = _residency("auto", lambda: Memory(free[0], 10**6), on_gpu=True)
    for kept in (on_card, here, undecided):
        kept.make_room()
    CLOCK.advance()
    assert (on_card.layers, here.layers, undecided.layers) == (0, 4, 0)
    free[0] = 10**4
    here.make_room()
    assert here.layers == 0
    for kept in (on_card, here, undecided):
        kept.close()


def test_the_machine_is_not_asked_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_residency, "LOOK_EVERY", 3600.0)
    asked: list[int] = []
    kept, _ = _residency(1.0, lambda: asked.append(1) or Memory(10**6, 10**6))
    for _ in range(5):
        CLOCK.advance()
    assert len(asked) == 1
    kept.close()


def test_memory_pressure_takes_everything_back() -> None:
    free = [10**6]
    kept, slots = _residency(1.0, lambda: Memory(free=free[0], total=2 * 10**6))
    CLOCK.advance()
    assert kept.layers == 4 and kept.given_up == ""
    free[0] = 10**5
    CLOCK.advance()
    assert kept.layers == 0 and "memory are free" in kept.given_up
    assert not any(slot.allowed for slot in slots)
    free[0] = 10**6
    CLOCK.advance()
    assert kept.layers == 0  # it does not swing
    kept.close()


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("choice", [1.0, "auto", "off"])
@pytest.mark.parametrize("steps", [0, 1])
def test_after_close_no_step_is_listened_to(choice: Any, on_gpu: bool, steps: int, no_card: None) -> None:
    calls = []
    kept, slots = _residency(choice, lambda: calls.append(1) or Memory(10**6, 10**6), on_gpu=on_gpu)
    for _ in range(steps):
        CLOCK.advance()
    kept.close()
    before = len(calls)
    CLOCK.advance()
    assert len(calls) == before and all(slot.relieve is None for slot in slots)
    assert kept.layers == 0


@pytest.mark.parametrize("give_back", ["release", "close"])
def test_what_is_given_back_is_free_again(give_back: str) -> None:
    kept, slots = _residency(1.0)
    made = [slot.keep(kept, ((4, 5), slot.dtype, torch.device("cpu")), lambda out: out.fill_(1)) for slot in slots]
    alive = [weakref.ref(matrix) for matrix in made]
    del made
    assert all(reference() is not None for reference in alive)
    getattr(kept, give_back)()
    assert [reference() for reference in alive] == [None] * len(slots)
    kept.close()


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from([torch.bfloat16, torch.float32])), max_size=8),
    st.integers(0, 800),
)
def test_as_many_layers_are_kept_as_fit(sizes: list[tuple[int, torch.dtype]], budget: int) -> None:
    """Within the budget, and no layer that was left out would still have fitted."""
    slots = [Slot(*size) for size in sizes]
    kept = Residency(slots, "off", on_gpu=False)
    kept.admit(budget)
    assert kept.bytes == sum(slot.bytes for slot in slots if slot.allowed) <= budget
    assert kept.layers == sum(slot.allowed for slot in slots)
    assert all(slot.bytes > budget - kept.bytes for slot in slots if not slot.allowed)


def test_layers_in_the_folded_form_have_nothing_to_keep() -> None:
    report = install(tiny_lm(), form="folded", resident=1.0)
    assert (report.resident_layers, report.resident_bytes) == (0, 0)


@pytest.mark.parametrize("dora", [True, False])
def test_training_is_the_same_with_and_without(dora: bool) -> None:
    """But for the last bits of the norm, which may be taken while W' is made."""
    results = []
    for resident in (1.0, "off"):
        model = tiny_lm(use_dora=dora)
        report = install(model, resident=resident, form="merged")
        assert report.resident_layers == (14 if resident == 1.0 else 0)
        assert bool(report.resident_bytes) == (resident == 1.0)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
        for _ in range(3):
            loss, gradients = loss_and_gradients(model)
            optimizer.step()
        results.append((loss, gradients))
    close(*results, 1e-4 if dora else 0)


@pytest.mark.parametrize("dora", [True, False])
def test_a_kept_matrix_is_no_further_from_exact_in_bf16(dora: bool) -> None:
    model, layer = one_layer(72, 192, dtype=torch.bfloat16, nf4=True, use_dora=dora)
    x = random_x(3, 37, 192, dtype=torch.bfloat16)
    theirs, exact = run_layer(layer, x), exact_layer(layer, x)
    install(model, resident=1.0)
    bound(run_layer(layer, x), exact, theirs, EPS[torch.bfloat16])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """A list that grows by one for every dense matrix that is made from an NF4 weight."""
    found: list[torch.dtype] = []
    real, merge = Nf4.matrix, Nf4.merge

    def counting(self: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Tensor:
        found.append(dtype)
        return real(self, dtype, *args, **kwargs)

    def counting_merge(self: Any, *args: Any) -> Tensor | None:
        norms = merge(self, *args)
        found.extend([] if norms is None else [args[-1].dtype])
        return norms

    monkeypatch.setattr(Nf4, "matrix", counting)
    monkeypatch.setattr(Nf4, "merge", counting_merge)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_matrix_is_made_once_per_optimizer_step(made: list[torch.dtype], checkpointing: bool) -> None:
    model = tiny_lm()
    install(model, resident=1.0)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-2, fused=True)
    made.clear()
    for step in range(1, 3):
        for micro_batch in range(3):
            ids = tokens(seed=micro_batch)
            model(input_ids=ids, labels=ids).loss.backward()
        model.eval()(input_ids=ids)
        model.train()
        assert len(made) == 14 * step
        optimizer.step()
        optimizer.zero_grad()


def test_released_between_forward_and_backward_without_harm() -> None:
    model = tiny_lm()
    install(model, resident="off", form="merged")
    expected = loss_and_gradients(model)
    install(model, resident=1.0, form="merged")
    kept = residency(model)
    assert kept is not None
    ids = tokens()
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    assert kept.release() > 0 and kept.given_up == "memory ran out"
    loss.backward()
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    close((loss.detach(), got), expected, 2e-5)
    assert kept.layers == 0 and kept.release() == 0


@pytest.mark.parametrize("moment", ["norm", "forward", "backward"])
def test_out_of_memory_is_relieved_and_tried_again(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layer = one_layer(64, 128, nf4=True)
    x = random_x(6, 128)
    install(model, resident="off", form="merged")
    expected = run_layer(layer, x)
    install(model, resident=1.0, form="merged")
    kept, failures = residency(model), [1]
    assert kept is not None and kept.layers == 1

    def forget(*_: Any) -> None:
        layer.fused.slot.clear()
        layer.fused.slot.allowed = True

    name = "merge" if moment == "norm" else "matrix"
    real = getattr(Nf4, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("no memory")
        return real(*args, **kwargs)

    def fail_once(*_: Any) -> None:
        monkeypatch.setattr(Nf4, name, failing)

    if moment == "norm":  # the first that needs memory after an optimizer's step
        fail_once()
    elif moment == "forward":  # what was kept is gone, as after another layer's release
        layer(x)
        forget()
        fail_once()
    else:
        layer.register_forward_hook(forget)
        layer.register_forward_hook(fail_once)
    got = run_layer(layer, x)
    assert not failures and kept.layers == 0 and kept.given_up
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_out_of_memory_with_nothing_to_give_back_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layer = one_layer(64, 128, nf4=True)
    install(model, resident="off", form="merged")

    def failing(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Nf4, "matrix", failing)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        layer(random_x(6, 128))


def test_a_copy_of_a_model_keeps_nothing_and_disturbs_nothing() -> None:
    model = tiny_lm()
    install(model, resident=1.0)
    expected = loss_and_gradients(model)
    twin = copy.deepcopy(model)
    assert residency(twin) is None
    assert not any(m.fused.slot.allowed for m in twin.modules() if hasattr(m, "fused"))
    close(loss_and_gradients(twin), expected, 1e-5)
    for parameter in twin.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(2)
    CLOCK.advance()
    twin(input_ids=tokens())
    close(loss_and_gradients(model), expected, 2e-5)


def test_uninstall_gives_the_memory_back() -> None:
    model = tiny_lm()
    install(model, resident=1.0)
    model(input_ids=tokens())
    kept, slots = residency(model), [m.fused.slot for m in model.modules() if hasattr(m, "fused")]
    uninstall(model)
    assert kept is not None and kept.layers == 0 and residency(model) is None
    assert not any(slot.allowed or slot.relieve for slot in slots)


def test_auto_of_a_model_asks_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, layers in ((0, 0), (2 * (64 * 64 * 4) + 1, 1), (10**9, 14)):
        monkeypatch.setattr(module_of_residency, "machine_memory", lambda free=free: Memory(free, 10**10))
        assert install(tiny_lm(sizes={"num_key_value_heads": 4})).resident_layers == layers


@pytest.mark.parametrize("form", ["merged", "folded"])
@pytest.mark.parametrize("nf4", [True, False])
def test_matrices_in_one_shared_piece_of_memory(form: str, nf4: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large layers do on a CPU: a W' is good until the next one, and nobody may look at it later."""
    model = tiny_lm(nf4=nf4)
    expected = loss_and_gradients(model)
    monkeypatch.setattr(Scratch, "smallest", 0)
    install(model, form=form, resident="off")
    close(loss_and_gradients(model), expected, 2e-5)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    close(loss_and_gradients(model.train()), expected, 2e-5)
