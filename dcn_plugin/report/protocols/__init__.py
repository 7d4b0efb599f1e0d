"""What a report says of each protocol, and the one table of it: sections and conclusions ask here."""

from collections.abc import Mapping, Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols import protocol_of
from dcn_plugin.report.protocols import (
    autoattack,
    changed_images,
    cue_conflict,
    curve,
    distance,
    sanity,
    tapm,
    transfer,
    whitebox,
)
from dcn_plugin.report.protocols.part import ReportPart, general_part

__all__ = ["PARTS", "ReportPart", "parts_of"]

_PARTS = (
    transfer.PART,
    tapm.PART,
    whitebox.PART,
    autoattack.PART,
    curve.PART,
    distance.PART,
    *changed_images.PARTS,
    cue_conflict.PART,
    sanity.PART,
)

PARTS: Mapping[str, ReportPart] = {part.protocol.name: part for part in _PARTS}
"""Name of a protocol -> its part, in the order of a report."""


def parts_of(results: Sequence[Result]) -> list[tuple[ReportPart, list[Result]]]:
    """The parts that have records, with these: protocols of the table in its order, others as they appear."""
    sections: dict[str, list[Result]] = {name: [] for name in PARTS}
    others: dict[str, list[Result]] = {}
    for result in results:
        protocol = protocol_of(result)
        if protocol is not None and protocol.name in PARTS:
            sections[protocol.name].append(result)
        else:
            others.setdefault(result.protocol, []).append(result)
    return [
        *((PARTS[name], records) for name, records in sections.items() if records),
        *((general_part(name), records) for name, records in others.items()),
    ]
