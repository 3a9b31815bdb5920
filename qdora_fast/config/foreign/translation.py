"""What a foreign config becomes, key by key: the rules that both readers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdora_fast.system.errors import ConfigError

OPTIMIZERS = {
    "adamw": ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"),
    "adamw_8bit": ("adamw_8bit", "adamw_bnb_8bit"),
    "paged_adamw_8bit": ("paged_adamw_8bit",),
    "paged_adamw_32bit": ("paged_adamw_32bit", "paged_adamw"),
}
SCHEDULERS = {"cosine": ("cosine",), "linear": ("linear",), "constant": ("constant", "constant_with_warmup")}
OWN_TEMPLATES = ("alpaca", "chatml")
"""Templates of the same name here."""


@dataclass
class Translation:
    """Settings of ours, and what became of the keys that have none."""

    tool: str
    keys: dict[str, Any]
    """Theirs, without those that were looked at."""
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What was taken over with another meaning or value, a sentence each."""
    decided: list[str] = field(default_factory=list)
    """Keys for which nothing is set here, because it is always so or follows from the machine."""
    left: list[str] = field(default_factory=list)
    """Keys without a counterpart, each with the reason."""

    def take(self, key: str, setting: str, change: Callable[[Any], Any] = lambda value: value) -> None:
        """Set `setting`, such as train.epochs, to the value of one of their keys, where it has any."""
        value = self.pop(key)
        if value is not None:
            self.set(setting, change(value))

    def take_word(self, key: str, setting: str, words: Mapping[str, Iterable[str]], default: str) -> None:
        """The same for a choice: `words` are theirs for each of ours; another one is left behind."""
        value = self.pop(key)
        ours = next((word for word, theirs in words.items() if str(value) in theirs), None)
        if ours:
            self.set(setting, ours)
        elif value is not None:
            self.left.append(f"{key}: {value} (there are {', '.join(words)}; {setting} is {default})")

    def set(self, setting: str, value: Any) -> None:
        """Set one of ours, by its path."""
        *sections, last = setting.split(".")
        place = self.settings
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value

    def pop(self, key: str) -> Any:
        """The value of one of their keys, which is then done with; None: it is not there, empty or text like ''."""
        value = self.keys.pop(key, None)
        return None if value in ("", [], {}) else value

    def rest(self, decided: Iterable[str], reasons: Mapping[str, str]) -> None:
        """Sort what is left over. A key that is off (false, null, empty) asks for nothing."""
        for key, value in self.keys.items():
            if value in (None, False, "", [], {}):
                continue
            if key in decided:
                self.decided.append(key)
            else:
                why = next((why for start, why in reasons.items() if key.startswith(start)), "no setting here")
                self.left.append(f"{key}: {why}")
        self.keys = {}

    def take_usual(self) -> None:
        """The keys of the optimisation that both call alike; after `train.max_steps` is set."""
        self.take("learning_rate", "train.learning_rate", float)
        self.take("loraplus_lr_ratio", "train.loraplus_ratio")
        self.take("weight_decay", "train.weight_decay")
        self.take("max_grad_norm", "train.max_grad_norm", lambda norm: norm or 1.0)
        self.take("warmup_ratio", "train.warmup")
        self.warm_up(self.pop("warmup_steps"), "warmup_steps")
        self.take("seed", "train.seed")
        for key in ("eval_steps", "save_steps"):
            value = self.pop(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                self.set(f"train.{key}", value)
            elif value:
                self.left.append(f"{key}: {value} (a number of optimizer steps is needed; five a run)")

    def accumulate(self, batch: Any, accumulation: Any) -> None:
        """The effective batch on one card, where a batch size was given."""
        if batch is not None:
            self.set("train.batch_size", batch)
            self.set("train.effective_batch", int(batch) * int(accumulation or 1))

    def hold_out(self, share: Any, key: str) -> None:
        """The held-out share, where there is one between 0 and 0.9."""
        if isinstance(share, int | float) and 0 < share < 0.9:
            self.set("data.held_out", share)
        elif share is not None:
            self.notes.append(
                f"{key} {share}: a tenth of the rows is held out here, to judge the result (data.held_out)"
            )

    def warm_up(self, steps: Any, key: str) -> None:
        """A warm-up in steps, which is a share of all steps here."""
        total = self.settings.get("train", {}).get("max_steps")
        if steps and total:
            self.set("train.warmup", round(min(0.99, steps / total), 4))
        elif steps:
            self.left.append(f"{key}: {steps} (train.warmup is a share of all steps; 0.05 is taken)")

    def check_complete(self, path: Path) -> None:
        """Refuse a config that names no rows."""
        data = self.settings.get("data", {})
        if not data.get("path") and not data.get("sources"):
            self.notes.append(f"{path.name} names no rows that can be taken over: give them with --data")


def sources(translation: Translation, found: list[dict[str, Any]]) -> None:
    """Take over one or several sources of rows."""
    if len(found) == 1:
        translation.settings.setdefault("data", {}).update(found[0])
    elif found:
        translation.set("data.sources", found)


def refuse_objective(what: str) -> None:
    """Something else is trained than answers."""
    raise ConfigError(f"{what}: this trainer fine-tunes on answers (supervised); that objective is not available")
