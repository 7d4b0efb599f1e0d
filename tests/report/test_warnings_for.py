from __future__ import annotations

from dcn_plugin.report import cautions
from tests.toy_records import check_record, distance_record, matrix_records, record, shuffle_record, tapm_record


def test_there_is_nothing_to_warn_of_in_sound_records() -> None:
    assert cautions([record(), distance_record(n_failed_starts=0), check_record("noise", False)]) == []


def test_a_source_that_holds_the_network_is_named_and_the_diagonal_of_a_matrix_is_not() -> None:
    assert cautions(matrix_records()) == []
    hidden = [record(source="a+b", relation="same network"), tapm_record(relation="same network")]
    (sentence,) = cautions([*hidden, record(target="other", source="a+b", relation="other network")])
    assert "White-box, not transfer" in sentence
    assert "PGD on a+b, eps 0.2 (standard), TAPM, eps 0.2 (standard)" in sentence
    assert "other" not in sentence


def test_a_network_that_gets_nothing_right_is_named_once() -> None:
    empty = {"n_clean_correct": 0, "n_counted": 0, "n_defended": 0}
    (sentence,) = cautions([record(**empty), record(**empty, eps=0.1)])
    assert sentence.count("standard") == 1
    assert "No clean image" in sentence


def test_a_setting_in_which_no_image_counts_is_named_with_its_networks() -> None:
    lost = {"n_counted": 0, "n_defended": 0}
    (sentence,) = cautions([shuffle_record(k=8, target=target, **lost) for target in "ab"])
    assert "patch shuffle, k 8 (a, b)" in sentence


def test_failed_starts_come_worst_first() -> None:
    (sentence,) = cautions([distance_record(n_failed_starts=1), distance_record(n_failed_starts=7, target="weak")])
    assert "BoundaryAttack (weak 7 of 100, standard 1 of 100)" in sentence


def test_an_attack_that_stood_still_is_named() -> None:
    assert cautions([record(n_zero_gradient=5)]) == []
    (sentence,) = cautions([record(n_zero_gradient=6)])
    assert "PGD on source, eps 0.2 (6 of 100 images)" in sentence
