from __future__ import annotations

from collections.abc import Callable

import pytest

from dcn_plugin.evaluate import Result
from dcn_plugin.report import findings
from tests.toy_records import (
    matrix_records,
    noise_record,
    record,
    tapm_record,
    whitebox_record,
)


def better_and_worse(n_correct: int, seeds: int = 1) -> list[str]:
    results = [
        result
        for seed in range(seeds)
        for result in (
            record(seed=seed, n_defended=0, n_correct=10),
            record(seed=seed, target="p=0.1", n_clean_correct=88, n_defended=0, n_correct=n_correct),
        )
    ]
    return findings(results, baseline="standard")


def test_a_better_network_is_said_to_be_better_by_how_much_and_how_often() -> None:
    clean, transfer, tally = better_and_worse(31, seeds=3)
    assert "standard classifies 90.0 ± 0.0 %" in clean
    assert "p=0.1 with 88.0 ± 0.0 % (-2.0 points)" in clean
    assert "best is p=0.1 with 31.0 ± 0.0 % (+21.0 points; above in 3 of 3 runs)" in transfer
    assert "above in 1, equal in 0 and below in 0" in tally
    assert "do not overlap in 1." in tally


def test_a_worse_network_is_said_to_be_worse() -> None:
    _, transfer, tally = better_and_worse(9)
    assert "no other network does better (best of them: p=0.1 with 9.0 %)" in transfer
    assert "above in 0, equal in 0 and below in 1" in tally
    assert "do not overlap in 0." in tally


def test_equal_is_equal() -> None:
    _, transfer, tally = better_and_worse(10)
    assert "no other network does better" in transfer
    assert "equal in 1" in tally


def test_nothing_is_said_where_there_is_nothing_to_compare() -> None:
    assert findings([record(), record(target="p=0.1")], baseline=None) == []
    assert findings([record()], baseline="standard") == []
    assert findings([record(), record(target="p=0.1")], baseline="absent") == []
    assert findings([], baseline="standard") == []


def test_many_settings_of_a_protocol_are_summed_up_in_one_sentence() -> None:
    results = [
        result
        for eps in range(1, 9)
        for result in (record(eps=eps / 255), record(eps=eps / 255, target="p=0.1", n_correct=45 + (eps > 2)))
    ]
    (sentence,) = (s for s in findings(results, baseline="standard") if s.startswith("Transfer attacks"))
    assert sentence.endswith("8 settings: mean difference to standard in accuracy on all images: p=0.1 +0.8 points "
                             "(above in 6 of 8).")  # fmt: skip


def test_a_network_attacked_by_itself_is_not_compared_as_if_by_transfer() -> None:
    sentences = findings(matrix_records(), baseline="standard")
    assert not any(s.startswith("PGD on vgg,") for s in sentences)
    assert any(s.startswith("PGD on resnet,") for s in sentences)


def test_white_box_and_tapm_are_compared_by_accuracy_on_all_images() -> None:
    for make, start in ((whitebox_record, "White-box PGD, eps 0.2: "), (tapm_record, "Worst of all transfer attacks")):
        results = [make(), make(target="p=0.1", n_defended=42, n_correct=42)]
        assert any(s.startswith(start) and "+12.0 points" in s for s in findings(results, baseline="standard"))


@pytest.mark.parametrize("make", [record, tapm_record])
def test_what_was_attacked_from_within_stands_in_no_sentence(make: Callable[..., Result]) -> None:
    black = [
        make(relation="other network"),
        make(target="p=0.1", relation="other network", n_defended=42, n_correct=42),
    ]
    (_, *alone) = findings(black, baseline="standard")
    # One run of several is enough.
    white = [make(target="p=0.5", seed=seed, relation=relation, n_defended=43, n_correct=43)
             for seed, relation in enumerate(("other network", "same network"))]  # fmt: skip
    (_, *beside) = findings([*black, *white], baseline="standard")
    assert alone == beside
    (clean,) = findings([*black, *white], baseline="p=0.5")
    assert clean.startswith("Clean images")


def test_sentences_on_several_image_sets_name_them() -> None:
    results = [make(target=target, data=data) for make in (record, noise_record)
               for data in ("one", "two") for target in ("standard", "p=0.1")]  # fmt: skip
    starts = [sentence.partition(":")[0] for sentence in findings(results, baseline="standard")]
    assert {"PGD on source, eps 0.2, one", "PGD on source, eps 0.2, two"} < set(starts)
    assert {"Gaussian noise, sigma 0.2, one", "Gaussian noise, sigma 0.2, two"} < set(starts)
