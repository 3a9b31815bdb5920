"""What a base answered to benchmark questions is kept: it is the same for all runs on that base, and half the time.

One JSON file for each key; the key holds all that the answers depend on: the base, the tasks and their settings, which
questions, the harness, and, since the last bits of a logit decide close calls, the batch size, the length limit, the
device and torch. The texts of the questions are not in the key: each answer has the hash of its prompt, and whoever
uses it compares that. A file that cannot be read counts as none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdora_fast.evaluation.mmlu.harness import Answers, Outcome, Reader, Tasks, harness_version
from qdora_fast.evaluation.mmlu.harness_tasks import describe
from qdora_fast.evaluation.mmlu.mmlu_subset import ids_hash
from qdora_fast.system.atomic import staged_file
from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import value_hash


def base_key(
    reader: Reader,
    identity: Mapping[str, Any],
    name: str,
    tasks: Tasks,
    ids: Mapping[str, Sequence[int]] | None,
) -> dict[str, Any]:
    """All that the base's answers depend on, apart from the text of the questions; JSON.

    Args:
        identity: the base's name, revision, quantisation, precision.
        name: of the benchmark.
        ids: numbers of the questions of each task; None: all.
    """
    import torch

    device = reader.model.device
    return {
        "base": dict(identity),
        "benchmark": name,
        "tasks": describe(tasks),
        "ids_sha256": ids_hash(ids) if ids else None,
        "harness": harness_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "batch_size": reader.batch_size,
        "max_length": reader.longest,
    }


def read_base(cache: Path, key: Mapping[str, Any]) -> Answers | None:
    """What the base answered before; None where there is nothing, or nothing that can be read."""
    try:
        content = read_object(_file(cache, key), {"metric": str, "cut": int, "answers": dict})
        by_task = {
            task: {number: Outcome(float(value), str(asked)) for number, value, asked in outcomes}
            for task, outcomes in content["answers"].items()
        }
        return Answers(content["metric"], by_task, content["cut"])
    except (IntegrityError, ValueError, TypeError, AttributeError):
        return None


def keep_base(cache: Path, key: Mapping[str, Any], answers: Answers) -> Path:
    """Write the base's answers for the next run; returns the file."""
    cache.mkdir(parents=True, exist_ok=True)
    by_task = {
        task: [[number, outcome.value, outcome.asked] for number, outcome in outcomes.items()]
        for task, outcomes in answers.by_task.items()
    }
    content = {"key": key, "metric": answers.metric, "cut": answers.cut, "answers": by_task}
    path = _file(cache, key)
    with staged_file(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")
    return path


def _file(cache: Path, key: Mapping[str, Any]) -> Path:
    return cache / f"{value_hash(key)}.json"
