"""The one table of what a report says of each protocol."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dcn_plugin.report
from dcn_plugin.evaluate.protocols import PROTOCOLS
from dcn_plugin.report import findings, protocols, result_tables
from dcn_plugin.report.protocols import PARTS, parts_of
from tests.toy_records import check_record, distance_record, noise_record, record, tapm_record, whitebox_record


def test_every_protocol_has_a_part_in_the_order_of_the_protocols() -> None:
    assert list(PARTS) == list(PROTOCOLS)
    assert all(part.protocol is PROTOCOLS[name] for name, part in PARTS.items())


def test_no_file_of_the_report_quotes_the_name_of_a_protocol() -> None:
    names = {name for protocol in PROTOCOLS.values() for name in (protocol.name, protocol.record) if name}
    quoted = re.compile(f'"({"|".join(names)})"')
    files = list(Path(dcn_plugin.report.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    assert [file.name for file in files if quoted.search(file.read_text())] == []
    assert quoted.search('match family.name: case "transfer":')


def test_records_are_sorted_by_protocol_and_unknown_ones_come_last_as_they_appear() -> None:
    results = [
        noise_record(protocol="zebra"), check_record("noise", True), noise_record(protocol="blur"),
        distance_record(protocol="cw"), distance_record(), record(), noise_record(protocol="zebra", eps=0.1),
    ]  # fmt: skip
    rows = [(part.name, len(records)) for part, records in parts_of(results)]
    assert rows == [("transfer", 1), ("distance", 2), ("sanity", 1), ("zebra", 2), ("blur", 1)]
    assert parts_of([]) == []


def test_a_record_that_bears_the_name_of_a_protocol_without_its_figure_is_shown_all_the_same() -> None:
    results = [distance_record(), noise_record(protocol="distance", figures={"hops": 3})]
    assert [table.title for table in result_tables(results)][-1] == "Protocol distance"


def test_a_protocol_without_a_part_gets_the_general_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "PARTS", {name: part for name, part in PARTS.items() if name != "tapm"})
    assert [part.heading for part, _ in parts_of([tapm_record(), record()])] == ["Transfer", "Protocol tapm"]


@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.better == "higher"])
def test_a_compared_protocol_begins_its_sentences_with_what_was_done(name: str) -> None:
    protocol = PROTOCOLS[name]
    make = whitebox_record if protocol.itself else record
    counts = {"n_defended": 30, "n_correct": 30}
    results = [make(protocol=protocol.record, target=target, **counts) for target in ("standard", "p=0.1")]
    (sentence,) = (s for s in findings(results, baseline="standard") if "no other network does better" in s)
    subject, strength = {
        "transfer": ("PGD on source", ", eps 0.2"),
        "tapm": ("Worst of all transfer attacks", ", eps 0.2"),
        "whitebox": ("White-box PGD", ", eps 0.2"),
        "autoattack": ("AutoAttack (–)", ", eps 0.2"),
        "curve": ("PGD without a bound", ", eps 0.2"),
        "gaussian": ("Gaussian noise", ", sigma 0.2"),
        "amplitude": ("Amplitude swap", ""),
        "stylized": ("Stylised images", ""),
    }[name]
    assert sentence.startswith(f"{subject}{strength}: ")
