from __future__ import annotations

from dcn_plugin.report import findings
from tests.report.tables_by_title import column, table
from tests.toy_records import check_record


def test_a_check_passes_fails_or_is_unknown() -> None:
    results = [check_record("noise", True), check_record("radius", False), check_record("black-box", None)]
    shown = table("Checks for gradient masking", *results)
    assert column(shown, "verdict") == ["pass", "FAIL", "unknown"]
    assert column(shown, "figures")[0] == "one step 12, share 0.1235"


def test_one_failure_in_several_runs_is_a_failure() -> None:
    shown = table("Checks for gradient masking", check_record("noise", True), check_record("noise", False, seed=1))
    assert column(shown, "verdict") == ["FAIL"]
    assert column(shown, "runs passed") == ["1 / 2"]


def test_verdicts_of_several_networks_stand_side_by_side() -> None:
    results = [check_record("noise", True), check_record("radius", False), check_record("noise", None, target="other")]
    shown = table("Verdicts", *results)
    assert shown.rows == (("standard", "pass", "FAIL"), ("other", "unknown", "–"))


def test_checks_are_summed_up_with_or_without_a_baseline() -> None:
    results = [
        check_record("noise", True),
        check_record("radius", False),
        check_record("black-box", None),
        check_record("noise", True, target="sound"),
    ]
    assert findings(results, baseline=None) == [
        "Checks for gradient masking, standard: 1 of 3 pass; failed: radius; not decided: black-box.",
        "Checks for gradient masking: all pass for sound.",
    ]
