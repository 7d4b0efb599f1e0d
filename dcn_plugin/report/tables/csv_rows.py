"""Raw records as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from dcn_plugin.evaluate import Result, Scalar

__all__ = ["records_csv"]


def records_csv(results: Sequence[Result]) -> str:
    """One record a row: plain values as they are, intervals as two columns, settings and figures as JSON."""
    rows = [_flat(result) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(result: Result) -> dict[str, Scalar]:
    flat = {key: value for key, value in result.to_dict().items() if not isinstance(value, dict | list)}
    bounds = {"defense": result.defense_interval, "accuracy": result.accuracy_interval}
    for name, interval in bounds.items():
        flat.pop(f"{name}_interval", None)  # None where there is none, two columns here in any case
        flat |= {f"{name}_low": interval and interval[0], f"{name}_high": interval and interval[1]}
    for name in ("attack_settings", "figures"):
        flat[name] = json.dumps(dict(getattr(result, name)), sort_keys=True, ensure_ascii=False)
    return flat
