"""Forgetting is measured with the real harness, without a network, on the very model that was loaded."""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_models import loaded_base
from mmlu_fixture import write_mmlu, write_task

from qdora_fast.config.evaluation import MmluSettings
from qdora_fast.config.loader import make_config
from qdora_fast.config.own_code import allow_own_code
from qdora_fast.evaluation.mmlu.harness import Answers, Outcome, Reader, harness_model
from qdora_fast.evaluation.mmlu.harness_tasks import load_mmlu, load_named, require_named
from qdora_fast.evaluation.mmlu.mmlu import Benchmark, Measured, Paired, compare, measure, mmlu_figures, pair, status_of
from qdora_fast.evaluation.mmlu.mmlu_subset import draw, ids_hash, question_ids, subject_sizes
from qdora_fast.models.loading import attach, fuse_layers
from qdora_fast.models.out_of_memory import Batches
from qdora_fast.system.errors import ConfigError, DataError
from qdora_fast.system.install import how_to_install

BASE = {"base": "tiny", "revision": None, "quantized": True, "precision": "fp32"}


@pytest.fixture(autouse=True)
def nothing_dials_out(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a test dialled out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def own_tasks(names: list[str], folder: str) -> dict[str, Any]:
    """Tasks of a folder that its user has let in."""
    with allow_own_code([folder]):
        return load_named(names, folder)


@pytest.fixture(scope="module")
def reader(tiny_base: Path) -> Reader:
    """NF4, a fresh DoRA adapter (B = 0), the fused engine, evaluation mode."""
    model_settings = {"name": str(tiny_base), "max_length": 512}
    config = make_config({"model": model_settings, "data": {"path": "demo"}, "adapter": {"r": 4, "alpha": 8}})
    base = loaded_base(config, str(tiny_base))
    model = attach(base, config.adapter, config.train)
    fuse_layers(model, config.engine)
    return Reader(model.eval(), base.tokenizer, 8)


@pytest.fixture(scope="module")
def favourite(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The letter, 0 to 3, that the untrained model says most."""
    folder = tmp_path_factory.mktemp("letters")
    names = [write_task(folder, f"letter_{letter}", answer=letter) for letter in range(4)]
    right = [values(reader.ask(tasks, None)) for tasks in own_tasks(names, str(folder)).values()]
    return max(range(4), key=lambda letter: sum(right[letter]))


@pytest.fixture(scope="module")
def copy_of_mmlu(favourite: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmlu(tmp_path_factory.mktemp("mmlu"), favourite)


@pytest.fixture
def harmed(reader: Reader) -> Iterator[Reader]:
    """The same model with an adapter that says something else."""
    weights = {name: value for name, value in reader.model.named_parameters() if ".lora_B." in name}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in weights.values():
            value.copy_(torch.randn(value.shape, generator=generator) * 3)
    yield reader
    with torch.no_grad():
        for value in weights.values():
            value.zero_()


def values(answers: Answers) -> list[float]:
    return [outcome.value for outcomes in answers.by_task.values() for outcome in outcomes.values()]


def settings(copy_of_mmlu: Path, **changes: Any) -> MmluSettings:
    return MmluSettings(**{"path": str(copy_of_mmlu), "questions": 1, "shots": 0, "enabled": True} | changes)


def run(reader: Reader, chosen: MmluSettings, cache: Path, **options: Any) -> dict[str, Any]:
    found = ask(reader, chosen, cache, **options).mmlu
    assert found is not None
    return found


def ask(reader: Reader, chosen: MmluSettings, cache: Path, names: Sequence[str] = (), **options: Any) -> Measured:
    how = {"identity": BASE, "cache": cache, "batch_size": 8} | options
    return measure(reader.model, reader.tokenizer, chosen, names, **how)


def own_task(folder: Path, **changes: Any) -> Benchmark:
    name = write_task(folder, "capitals", **changes)
    return Benchmark(name, own_tasks([name], str(folder))[name], None)


def test_an_adapter_that_does_nothing_changes_nothing_and_the_model_is_left_as_it_was(
    reader: Reader, copy_of_mmlu: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: value.clone() for name, value in reader.model.state_dict().items()}
    modes = [module.training for module in reader.model.modules()]
    level, state = logging.getLogger("lm_eval").level, torch.random.get_rng_state()
    capfd.readouterr()
    found = run(reader, settings(copy_of_mmlu), tmp_path)
    assert (found["delta_points"], found["gained"], found["lost"], found["ci95_points"]) == (0.0, 0, 0, [0.0, 0.0])
    assert found["base"] == found["tuned"] > 0.5
    assert (found["status"], found["n"], len(found["subjects"])) == ("ok", 57, 57)
    assert found["ids_sha256"] == ids_hash(question_ids(1)) and found["harness"].startswith("0.4")
    assert capfd.readouterr() == ("", "")
    after = reader.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and len(after) == len(before)
    assert [module.training for module in reader.model.modules()] == modes
    assert logging.getLogger("lm_eval").level == level and torch.equal(torch.random.get_rng_state(), state)


def test_a_harmful_adapter_raises_the_alarm(harmed: Reader, copy_of_mmlu: Path, tmp_path: Path) -> None:
    found = run(harmed, settings(copy_of_mmlu), tmp_path)
    assert found["status"] == "fail" and found["lost"] > 20
    assert found["ci95_points"][1] < 0 and found["p"] < 0.001
    assert found["words"].endswith("the model has forgotten")
    assert found["delta_points"] == pytest.approx(100 * (found["tuned"] - found["base"]))
    mean = sum(subject["tuned"] for subject in found["subjects"].values()) / 57
    assert mean == pytest.approx(found["tuned"])


def test_the_base_is_asked_once(reader: Reader, copy_of_mmlu: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def on_request(done: int, total: int) -> None:
        told.append((done, total))

    first = run(reader, settings(copy_of_mmlu), tmp_path, on_request=on_request)
    assert not first["base_cached"] and told[-1] == (114, 114)
    assert told == sorted(told) and told[0][0] < 114
    told.clear()
    second = run(reader, settings(copy_of_mmlu), tmp_path, on_request=on_request)
    assert second["base_cached"] and told[-1] == (57, 57)
    assert {key: value for key, value in first.items() if key not in ("base_cached", "seconds")} == {
        key: value for key, value in second.items() if key not in ("base_cached", "seconds")
    }
    assert not run(reader, settings(copy_of_mmlu), tmp_path, identity=BASE | {"revision": "abc"})["base_cached"]


def test_kept_answers_are_not_used_for_other_questions_settings_or_when_damaged(reader: Reader, tmp_path: Path) -> None:
    def cached(**changes: Any) -> bool:
        task = own_task(tmp_path / "tasks", **changes)
        return compare(reader, [task], identity=BASE, cache=tmp_path / "cache")[0].base_cached

    assert [cached(), cached()] == [False, True]
    unseen = {"num_fewshot": 0}
    assert [cached(**unseen), cached(**unseen, answer=2)] == [False, False]  # the same prompts, other right answers
    assert [cached(questions=9), cached(questions=9), cached(num_fewshot=3)] == [False, True, False]
    for file in (tmp_path / "cache").iterdir():
        file.write_text(file.read_text()[:50])
    assert [cached(num_fewshot=3), cached(num_fewshot=3)] == [False, True]


def test_only_the_questions_that_were_named_are_asked(reader: Reader, favourite: int, tmp_path: Path) -> None:
    task = own_task(tmp_path, answer=favourite)
    every = reader.ask(task.tasks, None)
    some = reader.ask(task.tasks, {"capitals": [2, 3, 11]})
    assert list(some.by_task["capitals"]) == [2, 3, 11]
    assert all(every.by_task["capitals"][number].asked == one.asked for number, one in some.by_task["capitals"].items())


def test_the_harness_does_not_touch_the_mode_of_the_model(reader: Reader, tmp_path: Path) -> None:
    reader.model.train()
    try:
        reader.ask(own_task(tmp_path).tasks, None)
        assert reader.model.training
    finally:
        reader.model.eval()


def test_a_task_whose_prompts_are_written_by_chance_is_refused(reader: Reader, tmp_path: Path) -> None:
    task = own_task(tmp_path, doc_to_text="{{range(1000000)|random}} {{question}}\nAnswer:")
    with pytest.raises(DataError, match="capitals: question 0 of capitals was not the same"):
        compare(reader, [task], identity=BASE, cache=tmp_path / "cache")


def test_answers_are_paired_by_question_and_not_by_order() -> None:
    base = Answers("acc", {"a": {1: Outcome(1.0, "x"), 2: Outcome(0.0, "y")}}, 0)
    tuned = Answers("acc", {"a": {2: Outcome(0.5, "y"), 1: Outcome(0.25, "x")}}, 3)
    assert pair("a", base, tuned) == Paired("acc", ["a", "a"], [1.0, 0.0], [0.25, 0.5], 3, False)
    for other in ({1: Outcome(1.0, "x"), 2: Outcome(0.0, "z")}, {1: Outcome(1.0, "x")}):
        with pytest.raises(DataError, match="question 2 of a"):
            pair("a", base, Answers("acc", {"a": other}, 0))


def test_own_tasks_stand_beside_mmlu(harmed: Reader, favourite: int, copy_of_mmlu: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "capitals", answer=favourite)
    write_task(tmp_path / "tasks", "written", **WRITTEN)
    chosen = settings(copy_of_mmlu, enabled=False, task_folder=str(tmp_path / "tasks"))
    with allow_own_code([tmp_path / "tasks"]):
        measured = ask(harmed, chosen, tmp_path / "cache", ["capitals", "written"])
    found = measured.benchmarks
    assert found is not None and measured.mmlu is None
    assert found["capitals"]["metric"] == "acc" and found["capitals"]["n"] == 12
    assert found["capitals"]["delta"] == found["capitals"]["tuned"] - found["capitals"]["base"] < 0
    assert found["capitals"]["ci95"][0] <= found["capitals"]["delta"] <= found["capitals"]["ci95"][1]
    assert found["written"] | {"n": 12, "metric": "exact_match", "base": 0.0} == found["written"]


WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def test_tasks_with_different_figures_are_not_added_up(reader: Reader, tmp_path: Path) -> None:
    write_task(tmp_path, "capitals", tag="both")
    write_task(tmp_path, "written", tag="both", **WRITTEN)
    with pytest.raises(ConfigError, match="acc, exact_match"):
        reader.ask(own_tasks(["both"], str(tmp_path))["both"], None)


def test_computing_fewer_logits_changes_no_answer(reader: Reader) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    endings = (" Vienna", " A", " B", " the city of Vienna at the Danube")
    pairs = [("The capital of Austria is " * times, ending) for times in (1, 3, 7, 40) for ending in endings]
    requests = [Instance("loglikelihood", {}, each, number) for number, each in enumerate(pairs)]
    theirs = HFLM(reader.model, tokenizer=reader.tokenizer, batch_size=3, max_length=512, softmax_dtype="float32")
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert harness_model(reader).loglikelihood(requests) == [pytest.approx(each, abs=1e-4) for each in expected]


def test_prompts_too_long_for_the_loaded_model_are_counted(reader: Reader, tmp_path: Path) -> None:
    short = Reader(reader.model, reader.tokenizer, 8)
    assert short.longest == 512  # what it was loaded for, not what its positions would allow
    assert reader.ask(own_task(tmp_path).tasks, None).cut == 0
    short.longest = 20
    assert short.ask(own_task(tmp_path).tasks, None).cut == 12
    words = mmlu_figures(Paired("acc", ["a"] * 9, [1.0] * 9, [1.0] * 9, 12, False), MmluSettings(), 20)["words"]
    assert "12 prompts were longer than the 20 tokens" in words and "model.max_length" in words


@pytest.mark.parametrize(
    ("delta", "status"),
    [(1.0, "ok"), (-1.99, "ok"), (-2.0, "warn"), (-2.99, "warn"), (-3.0, "fail"), (100 * (0.26 - 0.29), "fail")],
)
def test_the_limits_themselves_are_an_alarm(delta: float, status: str) -> None:
    assert status_of(delta, MmluSettings()) == status


def test_an_alarm_that_can_be_chance_says_so() -> None:
    def of(lost: int, gained: int, n: int) -> dict[str, Any]:
        base = [1.0] * lost + [0.0] * gained + [1.0] * (n - lost - gained)
        tuned = [0.0] * lost + [1.0] * gained + [1.0] * (n - lost - gained)
        return mmlu_figures(Paired("acc", ["a"] * n, base, tuned, 0, False), MmluSettings(), 512)

    by_chance, certain, fine = of(5, 3, 57), of(80, 10, 2000), of(5, 4, 2000)
    assert by_chance["status"] == "fail" and "the interval includes 0" in by_chance["words"]
    assert certain["status"] == "fail" and "the interval includes 0" not in certain["words"]
    assert certain["words"].startswith("MMLU -3.5 points (95 % CI -4.") and "of 2,000 questions" in certain["words"]
    assert fine["status"] == "ok" and fine["words"].endswith("within the limits")


def test_the_frozen_subset_is_what_its_rule_draws() -> None:
    ids, sizes = question_ids(36), subject_sizes()
    assert len(sizes) == 57 and sum(sizes.values()) == 14_042 and min(sizes.values()) == 100
    assert ids == {subject: draw(subject, size, 36) for subject, size in sizes.items()}
    assert ids_hash(ids) == "282a74590b2c56e40a6993b5c70b9d7a27685ce71a37b1fc0e0f06ab5e2a5346"
    assert all(len(set(each)) == 36 and each == sorted(each) for each in ids.values())
    assert all(set(few) < set(ids[subject]) for subject, few in question_ids(5).items())
    assert sum(map(len, question_ids("full").values())) == 14_042 == sum(map(len, question_ids(5000).values()))


def test_the_questions_asked_are_those_of_the_local_copy(reader: Reader, copy_of_mmlu: Path) -> None:
    tasks = load_mmlu(subject_sizes(), str(copy_of_mmlu), 5)
    assert list(tasks) == sorted(subject_sizes())
    task = tasks["world_religions"]
    assert task.config.num_fewshot == 5 and task.DATASET_PATH == "parquet"
    task.build_all_requests(samples=[7], rank=0, world_size=1)
    prompt = task.instances[0].args[0]
    assert prompt.startswith("The following are multiple choice questions (with answers) about world religions.\n\n")
    assert prompt.count("\nAnswer:") == 6 and "of list 7?" in prompt.rpartition("\n\n")[2]


def test_a_folder_that_is_no_copy_of_mmlu_is_refused(copy_of_mmlu: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no copy of cais/mmlu: it has no \w+/test-\*.parquet(.|\n)*hf download"):
        load_mmlu(subject_sizes(), str(tmp_path), 0)
    with pytest.raises(DataError, match="anatomy has 135 test questions, not 134"):
        load_mmlu({"anatomy": 134}, str(copy_of_mmlu), 0)
    with pytest.raises(ConfigError, match="shots: 6, but MMLU has 5 solved examples"):
        load_mmlu({"anatomy": 135}, str(copy_of_mmlu), 6)
    broken = tmp_path / "anatomy"
    broken.mkdir()
    for split in ("dev", "test"):
        (broken / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(ConfigError, match=r"cannot load .*(.|\n)*hf download"):
        load_mmlu({"anatomy": 135}, str(tmp_path), 0)


def test_without_a_copy_and_without_the_hub_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match=r"Couldn't reach(.|\n)*hf download cais/mmlu(.|\n)*evaluation.mmlu.path"):
        load_mmlu(subject_sizes(), None, 5)


def test_tasks_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(  # the harness' own tasks take ten seconds to read
        lm_eval.tasks, "TaskManager", lambda **options: manager(**options | {"include_defaults": False})
    )
    write_task(tmp_path, "capitals")
    with pytest.raises(ConfigError, match="no task `capitols`; close are capitals"):
        own_tasks(["capitols"], str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluation.benchmarks: there is no task `capitols`"):
        require_named(["capitals", "capitols"], str(tmp_path))
    require_named(["capitals"], str(tmp_path))
    with pytest.raises(ConfigError, match="is no folder"):
        load_named(["capitals"], str(tmp_path / "nowhere"))
    next(tmp_path.glob("*-test.jsonl")).unlink()
    with pytest.raises(ConfigError, match="cannot load `capitals`"):
        own_tasks(["capitals"], str(tmp_path))


def test_a_missing_harness_is_named_with_the_line_that_installs_it(
    reader: Reader, copy_of_mmlu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=re.escape(how_to_install("eval"))):
        run(reader, settings(copy_of_mmlu), tmp_path)


def test_prompts_that_do_not_fit_are_asked_fewer_at_a_time(reader: Reader, copy_of_mmlu: Path) -> None:
    tasks, ids = load_mmlu({"anatomy": 135}, str(copy_of_mmlu), 0), {"anatomy": range(6)}
    whole, notes = values(reader.ask(tasks, ids)), []
    small = Reader(reader.model, reader.tokenizer, 8, Batches(reader.model, notes.append))

    def look(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = reader.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        assert values(small.ask(tasks, ids)) == whole
    finally:
        hook.remove()
    assert small.batch_size == 1
    assert "benchmark questions were answered (CUDA out of memory)" in notes[-1]
