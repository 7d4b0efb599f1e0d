"""Records with counts that fit, to change one at a time."""

from __future__ import annotations

from typing import Any

from dcn_plugin.evaluate import Result

# What a record without a source leaves out.
_NO_SOURCE = {
    "source": None,
    "n_source_correct": None,
    "n_source_fooled": None,
    "n_zero_gradient": None,
    "steps": None,
}
_NO_COUNTS = {"n_defended": None, "n_correct": None}


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
    return record(**{"protocol": "gaussian", "attack": "gaussian-plain", **_NO_SOURCE, **changes})


def whitebox_record(**changes: Any) -> Result:
    """A valid record of an attack on the target itself."""
    own = {"source": changes.get("target", "standard"), "relation": "same network", "n_zero_gradient": 1}
    counts = {"n_counted": 90, "n_defended": 30, "n_correct": 30}
    return record(**{"protocol": "whitebox", **_NO_SOURCE, **own, **counts, **changes})


def autoattack_record(**changes: Any) -> Result:
    """A valid record of AutoAttack on the target itself."""
    settings = {"norm": "Linf", "version": "standard", "steps": 100, "eps": 0.2}
    return whitebox_record(**{"protocol": "autoattack", "attack": "AutoAttack", "attack_settings": settings, **changes})


def tapm_record(**changes: Any) -> Result:
    """A valid record of the worst of two sources and two attacks."""
    settings = {"sources": "vgg, resnet", "attacks": "PGD(eps=0.03137254901960784, steps=20); FGSM(eps=0.2)"}
    figures = {"worst_single_accuracy": 0.35, "worst_single": "vgg / PGD(eps=0.03137254901960784, steps=20)"}
    counts = {"n_counted": 90, "n_defended": 30, "n_correct": 30}
    named = {"protocol": "tapm", "attack": "TAPM", "attack_settings": settings, "figures": figures}
    return record(**{**_NO_SOURCE, **named, **counts, **changes})


def shuffle_record(**changes: Any) -> Result:
    """A valid record of shuffled patches."""
    settings = {"k": changes.pop("k", 2), "shuffle_seed": 0, "confidence": 0.99}
    named = {"protocol": "shuffle", "attack": "patch shuffle", "attack_settings": settings, "eps": None}
    return record(**{**_NO_SOURCE, **named, **changes})


def distance_record(median: float | None = 2e-4, **changes: Any) -> Result:
    """A valid record of the Boundary attack; without a median, one in which every start failed."""
    low, high = (None, None) if median is None else (0.8 * median, 1.25 * median)
    figures = {"median_distance": median, "distance_low": low, "distance_high": high, "mean_queries": 4900.0,
               "max_queries": 5000}  # fmt: skip
    counts = {"n_counted": 0 if median is None else 88, "n_failed_starts": 90 if median is None else 2}
    named = {"protocol": "boundary", "attack": "BoundaryAttack", "attack_settings": {"steps": 25000}, "eps": None}
    return record(**{**_NO_SOURCE, **_NO_COUNTS, **named, **counts, "figures": figures, **changes})


def check_record(check: str, passed: bool | None, **changes: Any) -> Result:
    """A valid record of a check for gradient masking."""
    named = {"protocol": "sanity", "attack": check, "attack_settings": {"steps": 40}, "passed": passed}
    figures = {"n_one_step": 12, "share": 0.123456}
    return record(**{**_NO_SOURCE, **_NO_COUNTS, **named, "figures": figures, **changes})


def cue_record(n_shape: int, n_texture: int, **changes: Any) -> Result:
    """A valid record of a cue conflict; the interval is a made-up one."""
    counted = n_shape + n_texture
    bias = n_shape / counted if counted else None
    figures = {"shape_bias": bias, "shape_bias_low": bias and bias / 2, "shape_bias_high": bias, "n_shape": n_shape,
               "n_texture": n_texture}  # fmt: skip
    named = {"protocol": "cue-conflict", "attack": "cue conflict", "attack_settings": {}, "eps": None}
    counts = {"n_clean_correct": None, "n_counted": counted}
    return record(**{**_NO_SOURCE, **_NO_COUNTS, **named, **counts, "figures": figures, **changes})


def matrix_records(**changes: Any) -> list[Result]:
    """A transfer matrix of two sources and two targets; a source of its own name is the target itself."""
    return [
        record(
            source=source,
            target=target,
            relation="same network" if source == target else "other network",
            n_defended=0 if source == target else 40,
            **changes,
        )
        for source in ("vgg", "resnet")
        for target in ("vgg", "standard")
    ]
