"""Records with counts that fit, to change one at a time."""

from __future__ import annotations

from typing import Any

from dcn_plugin.evaluate import Result


def record(**changes: Any) -> Result:
    """A valid transfer record of 100 images."""
    fields: dict[str, Any] = {
        "protocol": "transfer",
        "source": "source",
        "target": "standard",
        "data": "toy/test",
        "data_hash": "0" * 64,
        "seed": 0,
        "attack": "PGD",
        "attack_settings": {"eps": 0.2, "steps": 20},
        "eps": 0.2,
        "steps": 20,
        "n_total": 100,
        "n_source_correct": 95,
        "n_source_fooled": 85,
        "n_zero_gradient": 0,
        "n_clean_correct": 90,
        "n_counted": 80,
        "n_defended": 40,
        "n_correct": 45,
    }
    return Result(**{**fields, **changes})


def noise_record(**changes: Any) -> Result:
    """A valid record of Gaussian noise."""
    no_source = {
        "source": None,
        "n_source_correct": None,
        "n_source_fooled": None,
        "n_zero_gradient": None,
        "steps": None,
    }
    return record(**{"protocol": "gaussian", "attack": "gaussian-plain", **no_source, **changes})
