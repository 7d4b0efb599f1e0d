"""What makes a network defective, in data."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.errors import InputSizeError, SpecError
from dcn_plugin.specs import DefectSpec, MaskSpec, SiteSpec, check_chw, freeze_p, mask_specs

keep = st.floats(min_value=0, max_value=1, exclude_min=True, allow_subnormal=False)
modes = st.sampled_from(["neuron", "channel", "shared"])  # those without a span
spans = st.integers(1, 256)
samplings = st.sampled_from(["bernoulli", "exact"])
seeds = st.integers(0, 2**64 - 1)
mask_strategy = st.one_of(
    st.builds(MaskSpec, p=keep, mode=modes, sampling=samplings, seed=seeds),
    st.builds(MaskSpec, p=keep, mode=st.just("hole"), seed=seeds, span=spans),
    st.builds(
        lambda n, more, seed: MaskSpec(n / (n + more), "nm", seed=seed, span=n + more),
        st.integers(1, 99),
        st.integers(0, 99),
        seeds,
    ),
)
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
    mask=mask_strategy,
)
parts = st.one_of(st.integers(0, 9), names)
defect_specs = st.builds(
    DefectSpec,
    blocks=st.one_of(names, st.lists(parts, min_size=1, max_size=3).map(tuple)),
    p=st.one_of(keep, st.lists(st.tuples(parts, keep), min_size=1, max_size=3).map(tuple)),
    mode=st.one_of(modes, st.sampled_from(["hole", "nm"])),
    sampling=samplings,
    seed=seeds,
    span=st.one_of(st.none(), spans),
    input_size=sizes,
    sites=st.lists(site_specs, max_size=3).map(tuple),
    mask_origin=st.sampled_from(["sampled", "loaded"]),
)


@given(defect_specs)
def test_a_spec_is_the_same_after_a_trip_through_json(spec: DefectSpec) -> None:
    assert DefectSpec.from_json(spec.to_json()) == spec


def test_the_text_of_a_mode_without_a_span_does_not_speak_of_one_and_is_read_back() -> None:
    """Specifications written before there were spans stay readable, and byte for byte what they were."""
    mask = MaskSpec(0.3)
    site = SiteSpec("bn1", "conv1", 0, "stem", 0, (8, 4, 4), "norm", "NCHW", mask)
    spec = DefectSpec("all", 0.3, "neuron", "bernoulli", 0, (3, 8, 8), (site,))
    raw = json.loads(spec.to_json())
    assert "span" not in raw and raw["sites"][0]["mask"].keys() == {"p", "mode", "sampling", "seed"}
    spanned = replace(spec, mode="hole", span=3, sites=(replace(site, mask=replace(mask, mode="hole", span=3)),))
    raw = json.loads(spanned.to_json())
    assert raw["span"] == raw["sites"][0]["mask"]["span"] == 3


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
        mask_specs({"layer1": p})  # type: ignore[dict-item]


def test_a_whole_number_one_is_a_keep_probability() -> None:
    assert MaskSpec(p=1).p == 1.0


@pytest.mark.parametrize(
    "options",
    [{"mode": "pixel"}, {"sampling": "gaussian"}, {"seed": -1}, {"seed": 2**64}, {"seed": 1.0}, {"seed": True}],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="Allowed: "):
        MaskSpec(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "neuron", "span": 3}, r"mode='neuron' takes no span.*Got: 3.*'hole', 'nm'"),
        ({"mode": "hole"}, r"mode='hole' needs a span, the number of pixels on a side of a hole.*Got: None.*span=3"),
        ({"mode": "nm"}, r"mode='nm' needs a span, the number of channels in a group.*Got: None.*1:4"),
        *(({"mode": "hole", "span": span}, r"\[1, 256\]") for span in (0, -1, 257, 3.0, True, "3", (3, 3))),
        ({"mode": "hole", "span": 3, "sampling": "exact"}, "holes overlap.*Got: 'exact'.*'bernoulli'"),
        ({"mode": "nm", "p": 0.5, "span": 4, "sampling": "exact"}, "exact count already.*Got: 'exact'.*'bernoulli'"),
        ({"mode": "nm", "p": 0.3, "span": 4}, r"whole number of every 4 channels.*Got: 0.3.*n / 4.*p=1/4"),
        ({"mode": "nm", "p": 0.01, "span": 4}, r"Got: 0.01.*p=1/4"),
        ({"mode": "nm", "p": 0.9999, "span": 4}, r"Got: 0.9999.*p=4/4"),
    ],
)
def test_a_span_that_does_not_go_with_the_mode_is_refused_with_what_does(
    options: dict[str, object], match: str
) -> None:
    with pytest.raises(SpecError, match=match):
        MaskSpec(**options)  # type: ignore[arg-type]


@given(st.integers(1, 256).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))))
def test_a_pattern_is_what_p_and_span_say(pattern: tuple[int, int]) -> None:
    n, m = pattern
    assert MaskSpec(n / m, "nm", span=m).pattern == (n, m)


def test_a_decimal_keep_probability_is_a_pattern_of_ten() -> None:
    assert [MaskSpec(n * 0.1, "nm", span=10).pattern for n in range(1, 11)] == [(n, 10) for n in range(1, 11)]


def test_a_mode_without_groups_has_no_pattern() -> None:
    with pytest.raises(SpecError, match=r"Got: 'hole'.*mode='nm'"):
        _ = MaskSpec(mode="hole", span=3).pattern


def test_people_read_the_mode_with_its_span() -> None:
    specs = MaskSpec(), MaskSpec(mode="hole", span=3), MaskSpec(0.25, "nm", span=4)
    assert [spec.mode_text for spec in specs] == ["neuron", "hole 3x3", "nm 1:4"]


def test_every_keep_probability_of_a_mapping_has_to_go_with_the_mode() -> None:
    options = {"mode": "nm", "span": 4, "seed": 3}
    specs = mask_specs({"stem": 0.5, 1: 0.25}, **options)
    assert specs == {"stem": MaskSpec(0.5, **options), 1: MaskSpec(0.25, **options)}
    assert freeze_p({"stem": 0.5, 1: 0.25}, like=MaskSpec(1, **options)) == (("stem", 0.5), (1, 0.25))
    with pytest.raises(SpecError, match=r"whole number.*Got: 0.3"):
        mask_specs({"stem": 0.5, 1: 0.3}, **options)


@pytest.mark.parametrize("size", [None, 3, (3, 32), (3, 32, 0), (3, 32.0, 32), (3, 32, True), "3x32x32"])
def test_a_bad_size_is_refused_by_name(size: object) -> None:
    with pytest.raises(InputSizeError, match=r"\(C, H, W\)"):
        check_chw(size)


def test_an_empty_mapping_of_keep_probabilities_is_refused() -> None:
    with pytest.raises(SpecError, match="empty"):
        mask_specs({})
