"""The files of a folder that are read: those of one split, where their names say which split they are of.

The hub's folders hold train-00000-of-00002.parquet beside test-00000-of-00001.parquet, or train/ beside validation/,
and so do many of people's own. `datasets` has patterns for this, but takes any name with the word `training` or `test`
in it: of training_notes.jsonl and faq.jsonl it reads the first and forgets the second. So a name says a split here if
it is that word, alone or with a number and words such as `data`. As the last word (gsm8k_test, load_test) it counts
only beside files that are named so, and elsewhere (test_en) only beside the same name with `train`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from qdora_fast.data.read.compression import PACKED_ENDINGS
from qdora_fast.data.read.readers import is_supported, supported_endings
from qdora_fast.system.errors import DataError, RefusedError
from qdora_fast.system.paths import SPECIAL, leads_out

TRAIN = "train"
SPLITS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
FILLERS = ("data", "dataset", "set", "split", "part", "shard", "rows", "samples", "examples", "sft", "gen", "v", "of")
"""Words that may follow the name of a split."""
SHARD = re.compile(r"[-_.]\d{5}[-_]of[-_]\d{5}([-_.][0-9a-f]{8,})?$")
WORD = re.compile(r"[a-z]+|\d+")
ENTRIES_LOOKED_AT = 10_000
NAMES_SHOWN = 8


@dataclass(frozen=True)
class FolderFiles:
    """The files to read, in order, and what is left out: files of no kind that is read, and (name, split) of others."""

    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()
    other_splits: tuple[tuple[str, str], ...] = ()


class SplitName(NamedTuple):
    """What a name says: the split, the same in the name's own words (train_sft), and how."""

    split: str
    label: str
    rest: tuple[str, ...] = ()
    """The other words of the name, with "*" for the split."""

    @property
    def is_certain(self) -> bool:
        """Whether the name is the split's, and nothing else."""
        return self.rest in ((), ("*",))


def folder_files(folder: Path, split: str = TRAIN, *, held_out: bool = False) -> FolderFiles:
    """The data files of a folder that are of `split`; all of them, where their names speak of none.

    Args:
        held_out: the rows are to be held out, so that a test or validation split is preferred to one for training.

    Raises:
        DataError: no data file, none of this split, or several sets in folders of their own.
    """
    files, skipped = _data_files(folder)
    named = _named(files, folder)
    if held_out:
        split = _held_out_split(folder, split, list(named.values()))
    wanted = SPLIT_OF.get(split.lower(), split)
    chosen = [file for file, name in named.items() if name.label == split] or [
        file for file, name in named.items() if name.split == wanted
    ]
    if wanted == TRAIN:
        chosen += [file for file in files if file not in named]
    _refuse_unknown(folder, split, chosen, named)
    left = tuple((str(file.relative_to(folder)), name.label) for file, name in named.items() if file not in chosen)
    unnamed = tuple(str(file.relative_to(folder)) for file in files if file not in named and file not in chosen)
    return FolderFiles(tuple(file for file in files if file in chosen), (*skipped, *unnamed), left)


def check_split_of_file(file: Path, split: str) -> None:
    """Raise DataError if a split is asked of a single file that is not of that name."""
    name = _split_of(Path(file.name))
    if split != TRAIN and (name is None or split not in (name.label, name.split, *SPLITS[name.split])):
        raise DataError(
            f"data.split is {split!r}, but {file} is a single file, which has no splits; remove data.split, or name "
            "the file that you mean"
        )


def split_in_name(file: Path) -> str | None:
    """The split, other than that to train on, that the name of a file speaks of."""
    name = _split_of(Path(file.name))
    return name.split if name and name.split != TRAIN else None


def _named(files: list[Path], folder: Path) -> dict[Path, SplitName]:
    """The files whose names say a split, seen beside each other."""
    names = {file: name for file in files if (name := _split_of(file.relative_to(folder)))}
    to_train = {name.rest for name in names.values() if name.split == TRAIN}
    others = {name.rest for name in names.values() if name.split != TRAIN}
    there = any(name.is_certain or (name.split == TRAIN and name.rest[-1] == "*") for name in names.values())

    def counts(name: SplitName) -> bool:
        return name.is_certain or name.rest in to_train & others or (there and name.rest[-1] == "*")

    return {file: name for file, name in names.items() if counts(name)}


def _data_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The data files, sorted, and the names of what is left out; those of subfolders only if there are none above.

    Raises:
        DataError: none, or several sets.
        RefusedError: one is a link that leads out of the folder.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    below = [entry for entry in entries if entry.is_dir() and any(_files_below(entry))]
    _refuse_no_files(entries)
    files = [entry for entry in entries if entry.is_file() and is_supported(entry)]
    skipped = [entry.name for entry in entries if entry.is_file() and entry not in files]
    of_splits = [entry for entry in below if entry.name.lower() in SPLIT_OF]
    if files or of_splits:
        skipped += [f"{entry.name}/" for entry in below if entry not in of_splits]
        found = sorted([*files, *(file for entry in of_splits for file in _files_below(entry))])
        _refuse_links_out(found, folder)
        return found, skipped
    if len(below) == 1:
        inner, skipped_below = _data_files(below[0])
        return inner, [*skipped, *(f"{below[0].name}/{name}" for name in skipped_below)]
    if below:
        raise DataError(
            f"{folder}: several sets in folders of their own ({', '.join(each.name for each in below[:NAMES_SHOWN])}); "
            "name one of them as data.path, or all in data.sources"
        )
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:NAMES_SHOWN]) or "nothing"
    raise DataError(f"{folder}: no data file in this folder (it holds {inside}); supported: {supported_endings()}")


def _refuse_no_files(entries: Iterable[Path]) -> None:
    """What is named like rows and is neither file nor folder would be missed in silence, or waited for."""
    for entry in entries:
        if is_supported(entry) and not (entry.is_file() or entry.is_dir()):
            what = SPECIAL if entry.exists() else "a link that leads to nothing"
            raise DataError(f"{entry}: {what}; remove it, or put a file of rows there")


def _refuse_links_out(files: list[Path], folder: Path) -> None:
    """A folder of rows that was sent along must not bring a private file of this machine into a run."""
    for file in files:
        if leads_out(file, folder):
            raise RefusedError(
                f"{file}: a link that leads out of {folder} (to {file.resolve()}); put the file itself there, or name "
                "the files one by one in data.sources"
            )


def _files_below(folder: Path) -> Iterator[Path]:
    for entry in islice(folder.rglob("*"), ENTRIES_LOOKED_AT):
        hidden = any(part.startswith(".") for part in entry.relative_to(folder).parts)
        if not hidden:
            _refuse_no_files([entry])
        if not hidden and is_supported(entry) and entry.is_file():
            yield entry


def _split_of(file: Path) -> SplitName | None:
    """What the name of a file, or of a folder above it, says."""
    for part in file.parts[:-1]:
        if part.lower() in SPLIT_OF:
            return SplitName(SPLIT_OF[part.lower()], part.lower())
    stem = file.name.lower()
    while is_supported(Path(stem)) or stem.endswith(PACKED_ENDINGS):
        stem = stem.removesuffix(Path(stem).suffix)
    bare = SHARD.sub("", stem)
    words = [word for word in WORD.findall(bare) if word not in FILLERS and not word.isdigit()]
    said = [word for word in words if word in SPLIT_OF]
    if len(said) != 1:
        return None
    split = SPLIT_OF[said[0]]
    return SplitName(split, bare if bare != stem else split, tuple("*" if word in SPLIT_OF else word for word in words))


def _held_out_split(folder: Path, split: str, names: list[SplitName]) -> str:
    there = {name.label for name in names} | {name.split for name in names}
    if split != TRAIN and split in there:
        return split
    others = sorted({name.split for name in names} - {TRAIN})
    if len(others) > 1:
        raise DataError(
            f"{folder}: holds the splits {' and '.join(others)}; name the file to hold out (data.held_out_path)"
        )
    return others[0] if others else TRAIN


def _refuse_unknown(folder: Path, split: str, chosen: list[Path], named: dict[Path, SplitName]) -> None:
    there = sorted({name.label for name in named.values()})
    if not chosen:
        said = f"there are: {', '.join(there)}" if there else "its files name no splits; remove data.split"
        raise DataError(f"{folder}: no split {split!r} (data.split); {said}")
    several = sorted({named[file].label for file in chosen if file in named})
    if len(several) > 1 and split not in several:
        raise DataError(f"{folder}: no split {split!r} (data.split); there are: {', '.join(there)}")
