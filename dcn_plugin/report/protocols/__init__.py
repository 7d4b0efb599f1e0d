"""What a report says of each protocol, one a file, and the one table of it: sections and conclusions ask here."""

from collections.abc import Mapping

from dcn_plugin.report.protocols import (
    amplitude,
    cue_conflict,
    distance,
    gaussian,
    sanity,
    shuffle,
    stylized,
    tapm,
    transfer,
    whitebox,
)
from dcn_plugin.report.protocols.general import general_part
from dcn_plugin.report.protocols.part import ReportPart

__all__ = ["PARTS", "ReportPart", "general_part"]

_FILES = (transfer, tapm, whitebox, distance, gaussian, shuffle, amplitude, stylized, cue_conflict, sanity)

PARTS: Mapping[str, ReportPart] = {file.PROTOCOL.name: file.PART for file in _FILES}
"""Name of a protocol -> its part, in the order of a report."""
