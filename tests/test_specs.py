"""What makes a network defective, in data."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.errors import DcnError, InputSizeError, SpecError
from dcn_plugin.specs import DefectSpec, MaskSpec, SiteSpec, check_chw, freeze_p

keep = st.floats(min_value=0, max_value=1, exclude_min=True, allow_subnormal=False)
modes = st.sampled_from(["neuron", "channel", "shared"])
samplings = st.sampled_from(["bernoulli", "exact"])
seeds = st.integers(0, 2**64 - 1)
mask_specs = st.builds(MaskSpec, p=keep, mode=modes, sampling=samplings, seed=seeds)
names = st.text(min_size=1, max_size=12)
sizes = st.tuples(*[st.integers(1, 999)] * 3)
site_specs = st.builds(
    SiteSpec,
    name=names,
    conv=names,
    ordinal=st.integers(0, 500),
    block=names,
    block_index=st.integers(0, 9),
    shape=sizes,
    slot=st.sampled_from(["norm", "norm_act", "conv"]),
    layout=st.sampled_from(["NCHW", "NHWC", "NLC"]),
    mask=mask_specs,
)
parts = st.one_of(st.integers(0, 9), names)
defect_specs = st.builds(
    DefectSpec,
    blocks=st.one_of(names, st.lists(parts, min_size=1, max_size=3).map(tuple)),
    p=st.one_of(keep, st.lists(st.tuples(parts, keep), min_size=1, max_size=3).map(tuple)),
    mode=modes,
    sampling=samplings,
    seed=seeds,
    input_size=sizes,
    sites=st.lists(site_specs, max_size=3).map(tuple),
    mask_origin=st.sampled_from(["sampled", "loaded"]),
)


@given(defect_specs)
def test_a_spec_is_the_same_after_a_trip_through_json(spec: DefectSpec) -> None:
    assert DefectSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"sites": []}', '{"sites": [{"name": 1}]}', "{"])
def test_text_that_is_no_spec_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError, match="not the JSON of a DefectSpec"):
        DefectSpec.from_json(text)


def test_a_spec_of_an_unknown_mask_scheme_is_refused() -> None:
    spec = DefectSpec("all", 0.3, "neuron", "bernoulli", 0, (3, 8, 8), (), mask_scheme=2)
    with pytest.raises(SpecError, match="scheme") as caught:
        DefectSpec.from_json(spec.to_json())
    assert caught.value.got == 2


@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan, math.inf, "0.3", None, True])
def test_a_bad_keep_probability_is_refused_by_name(p: object) -> None:
    with pytest.raises(SpecError, match=r"keep probability.*Got: .*Allowed: a number in \(0, 1\].*Fix: "):
        MaskSpec(p=p)  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        freeze_p({"layer1": p})  # type: ignore[dict-item]


def test_a_whole_number_one_is_a_keep_probability() -> None:
    assert MaskSpec(p=1).p == 1.0


@pytest.mark.parametrize(
    "options",
    [{"mode": "pixel"}, {"sampling": "gaussian"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.0}, {"seed": True}],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="Allowed: "):
        MaskSpec(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [None, 3, (3, 32), (3, 32, 0), (3, 32.0, 32), (3, 32, True), "3x32x32"])
def test_a_bad_size_is_refused_by_name(size: object) -> None:
    with pytest.raises(InputSizeError, match=r"\(C, H, W\)"):
        check_chw(size)


def test_an_empty_mapping_of_keep_probabilities_is_refused() -> None:
    with pytest.raises(SpecError, match="empty"):
        freeze_p({})


def test_a_named_error_crosses_a_process_border() -> None:
    error = SpecError("What.", 3, "allowed", "fix it")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.got, again.fix) == (str(error), 3, "fix it")
    assert str(error) == "What. Got: 3. Allowed: allowed. Fix: fix it."
    assert isinstance(error, DcnError) and isinstance(error, ValueError)
