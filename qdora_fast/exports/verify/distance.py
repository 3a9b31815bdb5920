"""How far an exported model is from the one that was trained, and which base to merge into because of it.

Training in 4 bits learns around the rounding error of its base. Merged into the original 16-bit weights
(`original16`) the update meets weights without that error: usually better ones, sometimes not, and always
another function. Merged into the 4-bit weights (`dequant4`) it is the trained function, whose 4-bit noise stays
for good. That is a choice, not a fault, so it is measured on held-out rows and reported with its interval; what
must hold whatever is chosen is proven by `weights.py` and `outputs.py`.

`merged_4bit_forced` is the exception: rounding the merged weights to 4 bits can undo a light tune, and a model
that is surely nearer the base than the trained one is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qdora_fast.evaluation.statistics import Interval, bootstrap_ci
from qdora_fast.exports.verify.recording import Agreement, Recording, compare

LEAST_KEPT = 0.5
"""With less than half of the gain an export in 4 bits is nearer the base than the trained model: refused."""
WELL_KEPT = 0.9
"""With less than this a warning is due."""
NO_GAIN = 0.005
"""Nats per token. A smaller gain cannot be told from rounding."""

WORTH_NATS = 0.02
"""Nats per token that the 16-bit base may cost before the 4-bit one is taken instead."""
WORTH_SHARE = 0.10
"""The same as a share of what tuning gained."""


@dataclass(frozen=True)
class Distance:
    """Base, trained and exported model on the proof rows; losses in nats per token."""

    kl: float
    """KL(trained ‖ exported), nats per position."""
    top1: float
    """Share of positions with the same first choice, near ties counted as the same."""
    base: float
    trained: float
    exported: float
    ci95: Interval | None
    """Of exported - trained, rows resampled in pairs; None for a single row, which has no spread."""
    rows: int
    held_out: bool
    """False: the rows were trained on."""

    @classmethod
    def measure(cls, base: Recording, trained: Recording, exported: Recording, *, held_out: bool) -> Distance:
        """Compare recordings of the same rows."""
        agreement: Agreement = compare(trained, exported)
        pairs = zip(trained.losses, exported.losses, trained.counts, strict=True)
        differences = [(theirs - ours, count) for ours, theirs, count in pairs if count]
        sums, sizes = zip(*differences, strict=True)
        interval = bootstrap_ci(sums, sizes)
        return cls(
            agreement.mean_kl, agreement.top1, base.loss, trained.loss, exported.loss, interval, len(sums), held_out
        )

    @property
    def gain(self) -> float:
        """What tuning gained: base - trained."""
        return self.base - self.trained

    @property
    def difference(self) -> float:
        """What the export costs: exported - trained."""
        return self.exported - self.trained

    @property
    def kept(self) -> float | None:
        """Share of the gain that is left; may exceed 1. None where it cannot be judged."""
        return 1 - self.difference / self.gain if self.held_out and self.gain > NO_GAIN else None

    @property
    def lost_gain(self) -> bool:
        """True where even the favourable end of the interval is nearer the base than the trained model."""
        if self.kept is None or self.ci95 is None:
            return False
        return 1 - self.ci95[0] / self.gain < LEAST_KEPT

    @property
    def costs(self) -> str | None:
        """Why the 16-bit base is not worth its price, in words; None where it is."""
        if self.ci95 is None or self.ci95[0] <= 0:
            return None
        if self.difference <= WORTH_NATS and not 0 < WORTH_SHARE * self.gain < self.difference:
            return None
        low, high = self.ci95
        share = f", {self.difference / self.gain:.0%} of what tuning gained" if self.gain > 0 else ""
        return (
            f"merged into the 16-bit weights, the loss {self._where} would be {self.difference:.4f} higher "
            f"(95 % CI {low:.4f} to {high:.4f}{share})"
        )

    @property
    def words(self) -> str:
        """The finding as one sentence."""
        interval = f", 95 % CI {self.ci95[0]:+.4f} to {self.ci95[1]:+.4f}" if self.ci95 else ""
        text = (
            f"loss {self._where}: {self.base:.4f} base, {self.trained:.4f} trained, {self.exported:.4f} exported "
            f"({self.difference:+.4f}{interval}); KL {self.kl:.2g}, {self.top1:.1%} equal first choices"
        )
        return f"{self.kept:.0%} of the gain kept; {text}" if self.kept is not None else text

    @property
    def warning(self) -> str | None:
        """What to say of an export in 4 bits that passes with a loss."""
        if self.kept is None or self.kept >= WELL_KEPT or self.lost_gain:
            return None
        return (
            f"only {self.kept:.0%} of what tuning gained on held-out rows is left in this export; merged_16bit keeps it"
        )

    def to_dict(self) -> dict[str, Any]:
        """For export.json."""
        return asdict(self) | {"gain": self.gain, "difference": self.difference, "kept": self.kept, "words": self.words}

    @property
    def _where(self) -> str:
        kind = "held-out rows" if self.held_out else "rows trained on"
        return f"on {self.rows} {kind if self.rows != 1 else kind.replace('rows', 'row')}"
