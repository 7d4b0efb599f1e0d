"""A graph without gradients, in memory that is kept, against the same graph of operators."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dcn_plugin.engine import native
from dcn_plugin.engine.memory_plan import Inference
from tests.engine.cases import needs_c
from tests.engine.small_nets import NETS, Program, make, pictures, programs, randomised
from tests.engine.test_lower import no_lists_left_over, on_rows  # noqa: F401

pytestmark = needs_c


def both(graph: fx.GraphModule, *, largest: int = 64) -> tuple[fx.GraphModule, Inference]:
    return graph, Inference(graph, largest=largest)


@pytest.mark.parametrize("name", NETS)
def test_it_computes_the_same_bits_for_batches_of_any_size_in_any_order(name: str) -> None:
    graph, inference = both(on_rows(make(name), "c"))
    for count in (5, 0, 1, 21, 5):
        x = pictures(count, seed=count)
        with torch.no_grad():
            assert torch.equal(inference(x), graph(x))


@settings(max_examples=30)
@given(net=programs(), batch=st.sampled_from([1, 17]))
def test_values_that_share_memory_do_not_meet_whatever_the_network(net: Program, batch: int) -> None:
    graph, inference = both(on_rows(randomised(net), "c"))
    x = pictures(batch)
    with torch.no_grad():
        expected = graph(x)
        for _ in range(2):
            assert torch.equal(inference(x), expected)
            for block in inference._spare:
                block.fill_(torch.nan)  # nothing is read that this call did not write


@pytest.mark.parametrize("which", [slice(0, 3), slice(1, 4), slice(2, None, 2)])
@pytest.mark.parametrize("name", NETS)
def test_some_steps_may_run_on_images(name: str, which: slice) -> None:
    graph, inference = both(on_rows(make(name), "c", which=which))
    with torch.no_grad():
        assert torch.equal(inference(pictures(3)), graph(pictures(3)))


def test_values_whose_times_do_not_overlap_share_rows() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)))

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.convs(x)
            return made

    neurons = pictures(1).numel()
    assert Inference(on_rows(randomised(Chain()), "c"), largest=1).rows == 2 * neurons


def test_what_it_returned_stays_as_it_is() -> None:
    _, inference = both(on_rows(make("MaskedLast"), "c"))
    first = inference(pictures(4))
    before = first.clone()
    inference(pictures(4, seed=1))
    assert torch.equal(first, before)


def test_memory_is_kept_for_the_next_batch_but_not_that_of_larger_batches() -> None:
    graph, inference = both(on_rows(make("PostActivation"), "c"), largest=8)
    inference(pictures(8))
    (block,) = inference._spare
    assert len(block) == 8 * inference.rows
    for count in (3, 8):
        inference(pictures(count))
        assert inference._spare[0] is block
    inference(pictures(9))
    assert inference._spare[0] is block
    other = Inference(graph, largest=8)
    other(pictures(9))
    assert len(other._spare[0]) == 0


def test_memory_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inference = both(on_rows(make("PostActivation"), "c"))
    inference(pictures(4))
    with monkeypatch.context() as patched:
        patched.setattr(native, "to_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            inference(pictures(4))
    assert len(inference._spare) == 1
    with torch.no_grad():
        assert torch.equal(inference(pictures(4)), graph(pictures(4)))


def test_memory_made_under_inference_mode_serves_outside_of_it() -> None:
    graph, inference = both(on_rows(make("ReadTwice"), "c"))
    with torch.inference_mode():
        inference(pictures(4))
    with torch.no_grad():
        assert torch.equal(inference(pictures(3)), graph(pictures(3)))


def test_threads_do_not_share_memory() -> None:
    graph, inference = both(on_rows(make("DenseConcat"), "c"))
    given_images = [pictures(16, seed=seed) for seed in range(4)]
    with torch.no_grad():
        expected = [graph(x) for x in given_images]
    wrong = []

    def work(x: Tensor, right: Tensor) -> None:
        for _ in range(50):
            if not torch.equal(inference(x), right):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(given_images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(inference._spare) == 1


def test_without_rows_there_is_no_memory() -> None:
    assert Inference(on_rows(make("PostActivation"), "reference"), largest=4).rows == 0
