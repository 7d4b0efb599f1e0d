from __future__ import annotations

import pytest

from dcn_plugin.errors import SpecError
from dcn_plugin.support.suggestions import check_known, closest


def test_the_question_names_at_most_three_and_is_not_asked_where_nothing_is_near() -> None:
    names = ["resnet18", "resnet34", "resnet50", "resnet101", "vgg11"]
    assert closest("resnet5", ["resnet50", "vgg11"]) == "did you mean resnet50?"
    assert (closest("resnet", names) or "").count(",") == 2
    assert closest("VGG-11", ["vgg11", "BoundaryAttack"]) == "did you mean vgg11?"
    assert closest("boundaryatack", ["vgg11", "BoundaryAttack"]) == "did you mean BoundaryAttack?"
    assert closest("zzz", names) is None


def test_an_unknown_name_is_refused_with_all_names_and_the_nearest() -> None:
    check_known("network", "a", {"a": 1})
    with pytest.raises(SpecError, match=r"Unknown network\..*resnet18, vgg11.*did you mean resnet18\?"):
        check_known("network", "resnet1", ["resnet18", "vgg11"])
