"""The protocols, one a file, and the one table of them: whoever needs a protocol's words asks here."""

from collections.abc import Mapping

from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.evaluate.protocols import (
    amplitude,
    autoattack,
    cue_conflict,
    curve,
    distance,
    gaussian,
    sanity,
    shuffle,
    stylized,
    tapm,
    transfer,
    whitebox,
)
from dcn_plugin.evaluate.records import Result

__all__ = ["PROTOCOLS", "protocol_of"]

_FILES = (
    transfer,
    tapm,
    whitebox,
    autoattack,
    curve,
    distance,
    gaussian,
    shuffle,
    amplitude,
    stylized,
    cue_conflict,
    sanity,
)

PROTOCOLS: Mapping[str, Protocol] = {file.PROTOCOL.name: file.PROTOCOL for file in _FILES}
"""Name -> protocol, in the order of a report."""

_BY_RECORD = {protocol.record: protocol for protocol in PROTOCOLS.values() if protocol.record}
_BY_FIGURE = {protocol.figures[0]: protocol for protocol in PROTOCOLS.values() if not protocol.record}


def protocol_of(result: Result) -> Protocol | None:
    """The protocol that a record is of; None for a record of a protocol that is not known here."""
    named = _BY_RECORD.get(result.protocol)
    return named or next((protocol for name, protocol in _BY_FIGURE.items() if name in result.figures), None)
