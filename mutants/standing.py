"""Which tests stand for a module: by the mirror of the package in `tests/`, and a list where that does not reach.

`qdora_fast/part/x.py` is tested by `tests/part/test_x.py`; where there is no such file, by the tests of the nearest
folder that has some. `MORE` names what else stands for a module: the first entry that its path begins with counts.
"""

from __future__ import annotations

from pathlib import Path

_ENGINE = ("histories", "functions", "layers", "cache", "residency", "hooks")
_KERNELS = ("nf4", "norms", "sums", "borders")
MORE: dict[str, tuple[str, ...]] = {
    "engine/patch": ("engine/test_patch", "models/test_adapter_guard"),
    "engine/kernels/": tuple(f"engine/kernels/test_kernels_{name}" for name in _KERNELS),
    "engine/": tuple(f"engine/test_{name}" for name in _ENGINE),
    "data/clean/groups": ("data/clean/test_dedup", "data/clean/test_similarity"),
    "data/tokenize/spans": ("data/tokenize/test_masking",),
    "exports/merge/merged_model": ("exports/merge/test_merge",),
    "exports/merge/merge": ("exports/merge/test_shards",),
    "exports/merge/shards": ("exports/merge/test_merge",),
    "exports/merge/base": ("exports/merge/test_merged_model", "exports/merge/test_merge"),
    "models/weights": ("exports/merge/test_merged_model", "exports/merge/test_merge"),
    "models/nf4": ("exports/merge/test_merged_model",),
    "models/run_info": ("system/test_run_folder",),
    "recipes/resume": ("training/test_checkpoint", "training/test_resume"),
    "config/recorded": ("system/test_run_folder", "training/test_resume"),
    "system/run_folder": ("training/test_resume",),
    "exports/verify/peft_layers": ("exports/verify/test_weights", "exports/verify/test_outputs"),
    "exports/verify/streamed": ("exports/verify/test_outputs",),
    "exports/verify/checks": ("exports/test_merged_4bit",),
    "exports/verify/distance": ("exports/verify/test_checks",),
}


def standing_for(file: str, root: Path) -> list[str]:
    """Paths of tests from the project's root, the closest first; empty where nothing stands for this file."""
    inside = Path(file).with_suffix("").relative_to("qdora_fast")
    own = inside.with_name(f"test_{inside.name}").as_posix()
    more = next((more for start, more in MORE.items() if inside.as_posix().startswith(start)), ())
    tests = [f"tests/{test}.py" for test in dict.fromkeys((own, *more)) if (root / f"tests/{test}.py").exists()]
    folders = (f"tests/{folder.as_posix()}" for folder in inside.parents if folder.name)
    return tests or [folder for folder in folders if (root / folder).is_dir()][:1]
