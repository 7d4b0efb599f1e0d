from __future__ import annotations

import pytest

from dcn_plugin.errors import SpecError
from dcn_plugin.support.named_options import Spec, named, parse_spec


@pytest.mark.parametrize(
    ("text", "head", "options"),
    [
        ("resnet18", "resnet18", {}),
        ("pgd,eps=8/255,steps=20", "pgd", {"eps": 8 / 255, "steps": 20}),
        ("net, p=0.3 ,mode=shared", "net", {"p": 0.3, "mode": "shared"}),
        ("net,mean=[0.5, 0.4],std=(1,2)", "net", {"mean": [0.5, 0.4], "std": (1, 2)}),
        ("net,p={'layer1': 0.5, 'layer2': 0.1}", "net", {"p": {"layer1": 0.5, "layer2": 0.1}}),
        ("net,pretrained=true,x=False,y=None", "net", {"pretrained": True, "x": False, "y": None}),
        ("net.safetensors,model='resnet18,num_classes=10'", "net.safetensors", {"model": "resnet18,num_classes=10"}),
        ("mine:net,weights=a/b.safetensors", "mine:net", {"weights": "a/b.safetensors"}),
        ("mine:net,weights=/a/0", "mine:net", {"weights": "/a/0"}),
    ],
)
def test_a_name_with_options_is_read(text: str, head: str, options: dict[str, object]) -> None:
    assert parse_spec(text) == Spec(head, options)


@pytest.mark.parametrize("text", ["", ",p=1", "net,p", "net,p=1,p=2", "net,=3", "net,a b=3"])
def test_what_is_no_option_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


def test_names_are_split_off_and_default_to_the_spec() -> None:
    assert named(["a=resnet18,p=0.3", "resnet34", "densenet121,num_classes=3"], "targets") == {
        "a": "resnet18,p=0.3",
        "resnet34": "resnet34",
        "densenet121,num_classes=3": "densenet121,num_classes=3",
    }
    with pytest.raises(SpecError, match="Two targets"):
        named(["a=x", "a=y"], "targets")


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    def make(eps: float, *, steps: int = 1) -> tuple[float, int]:
        return eps, steps

    assert Spec("x", {"eps": 0.1, "steps": 3}).call(make) == (0.1, 3)
    with pytest.raises(SpecError, match="did you mean steps"):
        Spec("x", {"eps": 0.1, "step": 3}).call(make)
    with pytest.raises(SpecError, match="missing"):
        Spec("x", {}).call(make)
