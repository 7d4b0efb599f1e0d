import itertools

import pytest
import torch
from torch import nn

from dcn_plugin import Normalized
from dcn_plugin.surgery.wrappers import bare_name, network_in, unwrap

MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.25, 1.0]
WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "normalized": lambda model: Normalized(model, MEAN, STD),
}


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS)), ids="-".join)
def test_the_network_is_found_in_whatever_order_it_was_wrapped(order):
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    model = network
    for name in order:
        model = WRAPPERS[name](model)
    assert network_in(model) is network
    assert unwrap(model) == (network, {"mean": MEAN, "std": STD})


def test_a_bare_network_has_no_constants():
    network = nn.Linear(2, 2)
    assert unwrap(network) == (network, None)


def test_constants_are_those_of_the_innermost_normalisation():
    model = Normalized(Normalized(nn.Identity(), MEAN, STD), STD, MEAN)
    assert unwrap(model)[1] == {"mean": MEAN, "std": STD}


@pytest.mark.parametrize("path", ["a._orig_mod.b", "_orig_mod.a.b", "a.b._orig_mod", "a.b"])
def test_names_lose_the_level_of_the_compiler(path):
    assert bare_name(path) == "a.b"
