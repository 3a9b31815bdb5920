"""Which tests stand for a module: by the mirror of the package in `tests/`, and a list where that does not reach.

`qdora_fast/x.py` is tested by `tests/test_x.py`; `qdora_fast/part/x.py` by `tests/part/test_x.py`, or where there is
no such file by `tests/test_part.py` or `tests/part`. `MORE` names what else stands for a module: the first entry
that its path begins with counts.
"""

from __future__ import annotations

from pathlib import Path

_ENGINE = ("histories", "functions", "layers", "norms", "residency", "hooks")
_KERNELS = ("nf4", "norms", "sums", "borders")
MORE: dict[str, tuple[str, ...]] = {
    "engine/patch": ("tests/engine/test_patch.py", "tests/test_adapter_guard.py"),
    "engine/kernels/": tuple(f"tests/engine/kernels/test_kernels_{name}.py" for name in _KERNELS),
    "engine/": tuple(f"tests/engine/test_{name}.py" for name in _ENGINE),
    "data/groups": ("tests/data/test_dedup.py", "tests/data/test_similarity.py"),
    "data/spans": ("tests/data/test_masking.py",),
    "merged_model": ("tests/test_merge.py",),
    "merge": ("tests/test_shards.py",),
    "shards": ("tests/test_merge.py",),
    "base_weights": ("tests/test_merged_model.py", "tests/test_merge.py"),
    "weights": ("tests/test_merged_model.py", "tests/test_merge.py"),
    "nf4": ("tests/test_merged_model.py",),
    "run_folder": ("tests/test_resume.py",),
    "peft_layers": ("tests/test_proof.py", "tests/test_output_proof.py"),
    "streamed": ("tests/test_output_proof.py",),
    "export_proof": ("tests/test_nf4_export.py",),
    "distance": ("tests/test_export_proof.py",),
}


def standing_for(file: str, root: Path) -> list[str]:
    """Paths of tests from the project's root, the closest first; empty where nothing stands for this file."""
    inside = Path(file).with_suffix("").relative_to("qdora_fast")
    own = f"tests/{inside.with_name(f'test_{inside.name}').as_posix()}.py"
    more = next((more for start, more in MORE.items() if inside.as_posix().startswith(start)), ())
    found = [test for test in dict.fromkeys((own, *more)) if (root / test).exists()]
    of_folder = (f"tests/test_{inside.parts[0]}.py", f"tests/{inside.parts[0]}")
    return found or [test for test in of_folder if (root / test).exists()][:1]
