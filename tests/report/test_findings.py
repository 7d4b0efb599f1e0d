from __future__ import annotations

from dcn_plugin.report import findings
from tests.toy_records import noise_record, record


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


def test_noise_is_compared_too() -> None:
    results = [noise_record(), noise_record(target="p=0.1", n_correct=60)]
    assert any(
        s.startswith("Gaussian noise, sigma 0.2: ") and "+15.0 points" in s
        for s in findings(results, baseline="standard")
    )


def test_nothing_is_said_where_there_is_nothing_to_compare() -> None:
    assert findings([record()], baseline="standard") == []
    assert findings([record(), record(target="p=0.1")], baseline="absent") == []
    assert findings([], baseline="standard") == []
