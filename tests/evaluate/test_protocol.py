"""What protocols say of themselves: the table of them, the words of each, and that the words are true."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dcn_plugin.attacks import PGD, Attack, HopSkipJump
from dcn_plugin.cli.attacks import open_attacks
from dcn_plugin.data import CueConflict, ImageSet
from dcn_plugin.errors import DcnError
from dcn_plugin.evaluate.protocol import Option, Protocol, Request, Strength
from dcn_plugin.evaluate.protocols import PROTOCOLS, protocol_of, sanity_attacks
from tests import toy_records
from tests.image_files import pixels, write_image
from tests.toys import image_set, linear_model

each = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


@pytest.mark.parametrize(
    ("strength", "changes", "expected"),
    [
        (Strength(), {"eps": 0.2, "attack_settings": {"eps": 0.5}}, 0.2),  # the record's own, not the attack's
        (Strength(), {"eps": None}, None),
        (Strength("k"), {"attack_settings": {"k": 4}}, 4.0),
        (Strength("k"), {"attack_settings": {}}, None),
        (Strength("k"), {"attack_settings": {"k": "four"}}, None),
        (Strength("k"), {"attack_settings": {"k": True}}, None),
    ],
)
def test_the_strength_of_a_record_is_a_number_or_none(
    strength: Strength, changes: dict[str, Any], expected: float | None
) -> None:
    value = strength.of(toy_records.record(**changes))
    assert value == expected
    assert value is None or type(value) is float


def test_a_protocol_takes_its_options_and_no_others() -> None:
    protocol = Protocol(
        name="mine", record="mine", title="Mine", help="mine", measure=lambda request: [],
        options=(Option(name="level", help="of it"),),
    )  # fmt: skip
    assert protocol.takes("level")
    assert not protocol.takes("lev")
    assert (protocol.figure, protocol.data, protocol.attacks, protocol.strength) == (
        "defense_rate", "images", None, Strength(),
    )  # fmt: skip


def test_no_two_protocols_share_a_name_a_command_or_a_name_in_the_records() -> None:
    assert list(PROTOCOLS) == [protocol.name for protocol in PROTOCOLS.values()]
    commands = [name for protocol in PROTOCOLS.values() for name in protocol.commands or (protocol.name,)]
    assert len(set(commands)) == len(commands)
    named = [protocol.record for protocol in PROTOCOLS.values() if protocol.record]
    assert len(set(named)) == len(named)


@each
def test_the_words_of_a_protocol_fit_each_other(protocol: Protocol) -> None:
    assert protocol.record or protocol.figures  # its records are told by one or the other
    assert protocol.title[0].isupper() and not protocol.title.endswith(".")
    assert protocol.help[0].isalpha() and not protocol.help.endswith(".")
    names = [option.name for option in protocol.options]
    assert len(set(names)) == len(names)
    assert not protocol.sources or protocol.data == "images"
    for option in protocol.options:
        assert not option.required or option.default is None, option.name
        assert not option.choices or option.default in option.choices, option.name
        assert not option.several or option.default is None or isinstance(option.default, tuple), option.name
    for attack in protocol.attacks or ():
        assert open_attacks([attack])
    if protocol.attack is not None:
        assert protocol.attacks is None and not protocol.commands
        assert len(open_attacks([protocol.attack({option.name: option.default for option in protocol.options})])) == 1


RECORDS = {
    "transfer": toy_records.record,
    "gaussian": toy_records.noise_record,
    "whitebox": toy_records.whitebox_record,
    "autoattack": toy_records.autoattack_record,
    "tapm": toy_records.tapm_record,
    "shuffle": toy_records.shuffle_record,
    "distance": toy_records.distance_record,
    "sanity": lambda: toy_records.check_record("noise", True),
    "cue-conflict": lambda: toy_records.cue_record(3, 4),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_finds_its_protocol(name: str) -> None:
    assert protocol_of(RECORDS[name]()) is PROTOCOLS[name]


def test_a_record_of_no_protocol_that_is_known_here_has_none() -> None:
    assert protocol_of(toy_records.record(protocol="of a later version")) is None


@pytest.fixture(scope="module")
def cues(tmp_path_factory: pytest.TempPathFactory) -> CueConflict:
    root, names = tmp_path_factory.mktemp("cues"), ("bear", "bird", "cat")
    for seed, (shape, texture) in enumerate((shape, texture) for shape in names for texture in names):
        write_image(root / shape / f"{shape}1-{texture}1.png", pixels(4, 4, seed=seed))
    return CueConflict(root, class_names=names)


def request(protocol: Protocol, data: ImageSet, cues: CueConflict, **changes: Any) -> Request:
    """What the command line or a recipe would ask, every option at its default."""
    shape = cues.shape if protocol.data == "cues" else data.shape
    features = shape[0] * shape[1] * shape[2]
    unbounded = protocol.name in ("curve", "distance")
    attack: Attack = HopSkipJump(max_queries=60) if unbounded else PGD(0.1, steps=2)
    options = {option.name: option.default for option in protocol.options}
    if protocol.attack is not None:
        # In so large a ball nothing holds, and the slow parts have nothing to do.
        (attack,) = open_attacks([protocol.attack(options | {"eps": 0.9, "batch": 8})])
    classes = cues.num_classes if protocol.data == "cues" else data.num_classes
    known: dict[str, Any] = {
        "targets": {"a": linear_model(features, classes), "b": linear_model(features, classes, seed=1)},
        "sources": {"s": linear_model(features, classes, seed=2)} if protocol.sources else {},
        "attacks": [] if protocol.attacks is None and protocol.attack is None else [attack],
        "data": {"images": data, "pair": (data, data), "cues": cues}[protocol.data],
        "options": options,
        "run": {"training_seed": 3, "batch_size": 8},
    }
    return Request(**{**known, **changes})


@each
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whoever_asks_by_the_table_gets_records_that_the_table_knows(
    protocol: Protocol, cues: CueConflict, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody waits for the thousands of questions that sanity asks by default.
    monkeypatch.setattr(
        sanity_attacks, "HopSkipJump", lambda **settings: HopSkipJump(**{**settings, "max_queries": 60})
    )
    data = image_set(12, shape=(1, 8, 8))
    with torch.no_grad():
        labels = linear_model(64, 4)(data.images).argmax(1)
    results = list(protocol.measure(request(protocol, ImageSet(data.images, labels, 4, "toy"), cues)))
    assert {result.target for result in results} == {"a", "b"}
    for result in results:
        assert protocol_of(result) is protocol
        assert result.seed == 3
        assert not protocol.record or result.protocol == protocol.record
        assert (result.source is not None) == (
            (protocol.sources == "needed" and protocol.name == "transfer") or protocol.itself
        )
        assert not protocol.figures or protocol.figures[0] in result.figures
        assert protocol.strength is None or protocol.strength.of(result) is not None
        assert protocol.figure in result.figures or hasattr(result, protocol.figure)
    # Without its data it is refused at the call, before anybody iterates.
    with pytest.raises((DcnError, TypeError)):
        protocol.measure(request(protocol, data, cues, data=(None, None) if protocol.data == "pair" else None))
