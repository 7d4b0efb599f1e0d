"""Which tables a protocol gets, and in which order they come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import is_distance
from dcn_plugin.report.tables.attacks import tapm_tables, transfer_tables, whitebox_tables
from dcn_plugin.report.tables.changes import CHANGES, change_tables, cue_conflict_tables, other_tables
from dcn_plugin.report.tables.checks import sanity_tables
from dcn_plugin.report.tables.clean import clean_table
from dcn_plugin.report.tables.distances import distance_tables
from dcn_plugin.support.table import Table

__all__ = ["Family", "families", "result_tables"]

_DISTANCE = "distance"

_Maker = Callable[[Sequence[Result]], list[Table]]

# name -> (heading, maker), in the order of the report
_KNOWN: dict[str, tuple[str, _Maker]] = {
    "transfer": ("Transfer", transfer_tables),
    "tapm": ("TAPM", tapm_tables),
    "whitebox": ("White-box", whitebox_tables),
    _DISTANCE: ("Distances", distance_tables),
    **{name: (words.title, functools.partial(change_tables, protocol=name)) for name, words in CHANGES.items()},
    "cue-conflict": ("Cue conflict", cue_conflict_tables),
    "sanity": ("Gradient masking", sanity_tables),
}


@dataclass(frozen=True)
class Family:
    """The records of one protocol, or of several that are shown together.

    Args:
        name: the protocol; "distance" for all that measure one.
        heading: for a reader.
        results: the records.
    """

    name: str
    heading: str
    results: tuple[Result, ...]

    @property
    def tables(self) -> list[Table]:
        """At least one, none of them empty."""
        if self.name not in _KNOWN:
            return other_tables(self.results, self.name)
        return _KNOWN[self.name][1](self.results)


def families(results: Sequence[Result]) -> list[Family]:
    """Sort the records into families: the known ones in a fixed order, then others as they first appear."""
    sorted_in: dict[str, list[Result]] = {name: [] for name in _KNOWN}
    for result in results:
        name = _DISTANCE if is_distance(result) else result.protocol
        sorted_in.setdefault(name, []).append(result)
    return [
        Family(name, _KNOWN[name][0] if name in _KNOWN else f"Protocol {name}", tuple(own))
        for name, own in sorted_in.items()
        if own
    ]


def result_tables(results: Sequence[Result]) -> list[Table]:
    """Every table that the records have something for."""
    tables = [clean_table(results), *(table for family in families(results) for table in family.tables)]
    return [table for table in tables if table.rows]
