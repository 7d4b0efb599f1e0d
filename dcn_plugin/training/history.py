"""What a training run did, epoch by epoch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dcn_plugin.support.environment import hardware, package_versions

__all__ = ["EpochRecord", "History"]

SCHEMA = 1


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Args:
        epoch: from 0.
        lr: learning rate of its last step.
        loss: mean training loss over its steps, of the images the model was trained on.
        train_accuracy: share of those images that were right when they came.
        val_accuracy: share of the validation set, None without one.
        test_accuracy: share of the test set, None unless the best epoch is chosen on it.
        seconds: wall time, validation included.
        mask_progress: share of the way of gradual defects that was done at its end, 1 = the masks are those of the
            goal; None where masks do not change. It stands in no text where it is None.
    """

    epoch: int
    lr: float
    loss: float
    train_accuracy: float
    val_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    mask_progress: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its values as JSON has them."""
        raw = dataclasses.asdict(self)
        if self.mask_progress is None:
            del raw["mask_progress"]
        return raw


@dataclass
class History:
    """All epochs so far, and where they ran.

    Args:
        plan: what the run depends on; a run with another plan is another run.
        selected_by: what the best epoch is chosen on: "val", "test", or None where none is chosen.
        epochs: in order.
        sessions: one for each time the run was started: its first epoch, the precision it computed in, versions,
            hardware, and the engine where it is not the network itself.
    """

    plan: Mapping[str, Any]
    selected_by: str | None = None
    epochs: list[EpochRecord] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the highest accuracy on what it is chosen on, the first of equals; None if none is chosen.

        An epoch in which gradual defects were still on their way has another network, and is not chosen.
        """
        finished = [record for record in self.epochs if record.mask_progress in (None, 1)]
        if self.selected_by is None or not finished:
            return None
        return max(finished, key=lambda record: getattr(record, f"{self.selected_by}_accuracy"))

    @property
    def precision(self) -> str | None:
        """What the epochs were computed in: "float32", "bfloat16", or both; None where none says so."""
        precisions = dict.fromkeys(session["precision"] for session in self.sessions if "precision" in session)
        return ", ".join(precisions) or None

    @property
    def engine(self) -> str | None:
        """What computed the steps, where it was not the network itself."""
        return "; ".join(dict.fromkeys(session["engine"] for session in self.sessions if "engine" in session)) or None

    def begin(self, device: torch.device, dtype: torch.dtype = torch.float32, engine: str = "") -> None:
        """Note that the run starts, or goes on, here, in this precision, and what computes its steps."""
        here = {"versions": package_versions(), "hardware": hardware(device)}
        precision = str(dtype).removeprefix("torch.")
        self.sessions.append(
            {"first_epoch": len(self.epochs), "precision": precision, **here} | ({"engine": engine} if engine else {})
        )

    def to_json(self) -> str:
        """Serialise to JSON text; :meth:`from_json` is the exact inverse."""
        raw = {
            "schema": SCHEMA,
            "plan": self.plan,
            "selected_by": self.selected_by,
            "best": None if self.best is None else self.best.to_dict(),
            "epochs": [record.to_dict() for record in self.epochs],
            "sessions": self.sessions,
        }
        return json.dumps(raw, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no such text.
        """
        raw: dict[str, Any] = json.loads(text)
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}, known is {SCHEMA}")
        epochs: Sequence[Mapping[str, Any]] = raw["epochs"]
        return cls(raw["plan"], raw["selected_by"], [EpochRecord(**record) for record in epochs], raw["sessions"])
