"""A network trains on rows as it does on images: losses, gradients, statistics, and all that is done to networks."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dcn_plugin as dcn
from dcn_plugin.engine.training import model as training_model
from dcn_plugin.engine.training.task import TrainingTask
from dcn_plugin.errors import (
    CompactError,
    ImageRangeError,
    InputSizeError,
    NotDefectiveError,
    SpecError,
    TraceError,
)
from tests.engine.cases import BACKENDS, needs_c
from tests.engine.training.training_nets import (
    NETS,
    SIZE,
    OneBlock,
    assert_near,
    fast_of,
    gradients,
    loss_of,
    make,
    pictures,
    train,
    twins,
)
from tests.nets import NoNorm, same, snapshot


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every graph that is written, and every one that is traced for it."""
    notes: list[str] = []
    lower, traced = TrainingTask.lower, training_model.traced

    def note_lower(self: TrainingTask, *args: object) -> object:
        notes.append("lower")
        return lower(self, *args)  # type: ignore[arg-type]

    def note_trace(*args: object) -> object:
        notes.append("trace")
        return traced(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingTask, "lower", note_lower)
    monkeypatch.setattr(training_model, "traced", note_trace)
    return notes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETS)
def test_three_steps_leave_what_they_leave_in_the_model_itself(name: str, backend: str) -> None:
    plain, model = twins(name)
    fast = fast_of(model, backend)
    assert len(fast.plan.rows) >= 2
    assert_near(gradients(fast, pictures()), gradients(plain, pictures()))
    assert train(fast) == pytest.approx(train(plain), rel=1e-5)
    assert_near(fast.state_dict(), plain.state_dict())
    assert_near({"eval": fast.eval()(pictures())}, {"eval": plain.eval()(pictures())})


@needs_c
@pytest.mark.parametrize("count", [1, 2, 17, 33])
def test_batches_of_any_size_may_follow_each_other(count: int, graphs: list[str]) -> None:
    plain, model = twins()
    fast = fast_of(model)
    graphs.clear()
    for images in (pictures(5), pictures(count), pictures(3)):
        assert_near(gradients(fast, images), gradients(plain, images))
    assert graphs == ["trace", "lower"]


@needs_c
def test_images_get_their_gradient_for_adversarial_training() -> None:
    plain, model = twins("hand-written")
    fast = fast_of(model)
    towards = []
    for run in (plain, fast):
        images = pictures().requires_grad_()
        towards.append(torch.autograd.grad(loss_of(run, images), images)[0])
    assert_near({"images": towards[1]}, {"images": towards[0]})


def invert(model: nn.Module) -> None:
    for buffer in model.buffers():
        if buffer.dtype == torch.bool:
            buffer.logical_not_()


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def freeze_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("conv1" not in name and "bn" not in name)


def assign_weights(model: nn.Module) -> None:
    state = {key: value.clone() for key, value in make(seed=5).state_dict().items()}
    model.load_state_dict(state, assign=True)


def replace_weight(model: nn.Module) -> None:
    conv = model.layer1.conv1
    conv.weight = nn.Parameter(conv.weight.detach() * -0.5)


def replace_head(model: nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model.fc = nn.Linear(8, 6)


def set_momentum(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = 0.7, 0.1


def set_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


@needs_c
@pytest.mark.parametrize(
    "change",
    [
        invert,
        freeze_norms,
        freeze_weights,
        assign_weights,
        replace_weight,
        replace_head,
        set_momentum,
        set_data,
    ],
)
def test_the_next_step_follows_what_was_done_to_the_model(change: Callable[[nn.Module], None]) -> None:
    plain, model = twins()
    fast = fast_of(model)
    train(fast, 1)
    train(plain, 1)
    for net in (plain, model):
        change(net)
    assert_near(gradients(fast, pictures()), gradients(plain, pictures()))
    assert_near(fast.state_dict(), plain.state_dict())


@needs_c
def test_a_dropout_that_is_switched_off_drops_nothing_any_more() -> None:
    net = nn.Sequential(make(), nn.Dropout(0.5))
    fast = fast_of(net)
    assert (fast(pictures()) == 0).any()
    net[1].p = 0.0
    assert not (fast(pictures()) == 0).any()


@needs_c
def test_masks_that_are_written_with_the_same_bits_cost_no_new_graph(graphs: list[str]) -> None:
    model = make()
    fast = fast_of(model)
    fast(pictures())
    graphs.clear()
    for _ in range(2):
        model.load_state_dict(copy.deepcopy(model.state_dict()))  # writes all of them
        fast(pictures())
    assert graphs == []
    invert(model)
    fast(pictures())
    fast(pictures())
    assert graphs == ["lower"]


@needs_c
def test_a_graph_that_is_made_under_inference_mode_trains() -> None:
    plain, model = twins()
    fast = fast_of(model)
    for net in (fast, plain):
        with torch.inference_mode():
            net(pictures())
        with torch.no_grad():
            net(pictures())
    assert_near(gradients(fast, pictures()), gradients(plain, pictures()))
    assert_near(fast.state_dict(), plain.state_dict())


@needs_c
def test_gradients_of_two_batches_add_up() -> None:
    plain, model = twins()
    fast = fast_of(model)
    for run in (plain, fast):
        for seed in (0, 1):
            loss_of(run, pictures(seed=seed)).backward()
    assert_near(*({name: p.grad for name, p in net.named_parameters()} for net in (model, plain)))  # type: ignore[misc]


@needs_c
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_network_has_the_same_gradients_and_statistics(reentrant: bool) -> None:
    plain, model = twins()
    fast = fast_of(model)
    found = []
    for run, net in ((plain, plain), (fast, model)):
        images = pictures().requires_grad_()
        loss = loss_of(lambda x, run=run: checkpoint(run, x, use_reentrant=reentrant), images)
        loss.backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert_near(found[1], found[0])
    assert_near(model.state_dict(), plain.state_dict())


@needs_c
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_trains_its_own_weights(copied: Callable[[nn.Module], nn.Module], used: bool) -> None:
    plain, model = twins()
    fast = fast_of(model)
    if used:
        fast(pictures()), plain(pictures())
    twin, before = copied(fast), copy.deepcopy(model.state_dict())
    assert twin.plan == fast.plan
    train(twin)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    train(plain)
    assert_near(twin.state_dict(), plain.state_dict())


@needs_c
def test_its_state_dict_is_the_models_within_other_modules_too() -> None:
    model = make()
    fast = fast_of(model)
    assert fast.state_dict().keys() == model.state_dict().keys()
    assert [id(p) for p in fast.parameters()] == [id(p) for p in model.parameters()]
    other = make(seed=5).state_dict()
    fast.load_state_dict(other)
    assert all(torch.equal(value, other[key]) for key, value in model.state_dict().items())
    outer = nn.ModuleDict({"net": fast, "rest": nn.Linear(2, 2)})
    state = outer.state_dict()
    assert {key for key in state if key.startswith("net.")} == {f"net.{key}" for key in model.state_dict()}
    fresh = nn.ModuleDict({"net": fast_of(make(seed=7)), "rest": nn.Linear(2, 2)})
    fresh.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fresh.load_state_dict({**state, "net.more": torch.zeros(1)})


@needs_c
def test_an_average_of_its_weights_is_that_of_the_models() -> None:
    plain, model = twins()
    fast = fast_of(model)
    averages = []
    for net in (fast, plain):
        average = ModelEmaV3(net, decay=0.5)
        for _ in range(2):
            train(net, 1)
            average.update(net)
        averages.append(average.module)
    assert_near(averages[0].state_dict(), averages[1].state_dict())
    assert_near({"eval": averages[0](pictures())}, {"eval": averages[1](pictures())})


@needs_c
def test_the_average_of_weights_that_pytorch_makes_gets_its_statistics_anew_or_a_named_error() -> None:
    average = torch.optim.swa_utils.AveragedModel(fast_of(make()))
    # It sets momentum to None, which torch.export cannot follow: not a single batch is counted with another momentum.
    with pytest.raises(TraceError):
        torch.optim.swa_utils.update_bn([pictures()], average)
    average.eval()
    plain = torch.optim.swa_utils.AveragedModel(make())
    torch.optim.swa_utils.update_bn([pictures()], plain)
    average.module.model.load_state_dict(plain.module.state_dict())
    assert_near({"eval": average(pictures())}, {"eval": plain.eval()(pictures())})


@needs_c
def test_in_evaluation_mode_it_is_the_model() -> None:
    model = make()
    fast = fast_of(model).eval()
    assert not model.training
    seen: list[object] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu"):
        fast(pictures())
    assert torch.equal(fast(pictures()), model(pictures()))
    assert len(seen) == 3


@needs_c
def test_torch_compile_leaves_the_step_to_the_engine() -> None:
    plain, model = twins()
    compiled = torch.compile(fast_of(model), backend="eager")
    loss_of(compiled, pictures()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_near(grads, gradients(plain, pictures()))  # type: ignore[arg-type]


@pytest.fixture
def process() -> Iterator[None]:
    """One process that calls itself a group."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@needs_c
@pytest.mark.usefixtures("process")
def test_it_trains_within_ddp_and_no_graph_is_written_twice(graphs: list[str]) -> None:
    plain, model = twins()
    parallel = nn.parallel.DistributedDataParallel(fast_of(model))
    graphs.clear()
    assert train(parallel) == pytest.approx(train(plain), rel=1e-5)
    assert graphs == ["trace", "lower"]
    assert_near(model.state_dict(), plain.state_dict())
    parallel.load_state_dict(parallel.state_dict())


def use_after(change: Callable[[dcn.TrainingModel], object] | None = None) -> Callable[[dcn.TrainingModel], object]:
    def use(fast: dcn.TrainingModel) -> object:
        if change is not None:
            change(fast)
        return fast(pictures())

    return use


def under_autocast(fast: dcn.TrainingModel) -> object:
    with torch.autocast("cpu"):
        return fast(pictures())


@needs_c
@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda fast: fast(torch.zeros(2, 3, 16, 17)), InputSizeError, "one size"),
        (lambda fast: fast(torch.zeros(2, 1, 16, 16)), InputSizeError, "one size"),
        (lambda fast: fast(torch.zeros(SIZE)), InputSizeError, "one size"),
        (lambda fast: fast(pictures().double()), ImageRangeError, "float32"),
        (lambda fast: fast(pictures().to("meta")), CompactError, "on the CPU"),
        (under_autocast, CompactError, "autocast"),
        (use_after(lambda fast: fast.double()), CompactError, "float64 on cpu"),
        (use_after(lambda fast: fast.model.bfloat16()), CompactError, "bfloat16 on cpu"),
        (use_after(lambda fast: fast.model.fc.bfloat16()), CompactError, "several dtypes"),
        (
            use_after(lambda fast: fast.model.layer1.register_forward_hook(lambda *_: None)),
            CompactError,
            "'layer1' has hooks",
        ),
        (use_after(lambda fast: setattr(fast.model, "layer1", nn.Conv2d(6, 8, 3, 2, 1))), SpecError, "layer1"),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_what_a_step_cannot_do_is_refused_by_name_before_it_counts(
    use: Callable[[dcn.TrainingModel], object], error: type[Exception], says: str, used: bool
) -> None:
    fast = fast_of(make())
    if used:
        fast(pictures())
    counters = {key: value.clone() for key, value in fast.state_dict().items() if "num_batches" in key}
    with pytest.raises(error, match=says):
        use(fast)
    assert all(torch.equal(value, counters[key]) for key, value in fast.state_dict().items() if key in counters)


@needs_c
def test_a_gradient_of_a_gradient_is_refused_by_name() -> None:
    fast = fast_of(make())
    with pytest.raises(CompactError, match="no gradient of a gradient"):
        torch.autograd.grad(loss_of(fast, pictures()), list(fast.parameters()), create_graph=True)
    fast(pictures()).sum().backward()


class Hooked(OneBlock):
    def __init__(self) -> None:
        super().__init__()
        self.layer1.register_full_backward_hook(lambda *_: None)


def of(plain: nn.Module) -> nn.Module:
    return dcn.defectify(plain, p=0.5, blocks=["*"], input_size=SIZE).train()


@pytest.mark.parametrize(
    ("make_model", "options", "error", "says"),
    [
        (OneBlock, {}, NotDefectiveError, "no defective neurons"),
        (lambda: make().eval(), {}, CompactError, "evaluation mode"),
        (lambda: make().double(), {}, CompactError, "float64 on cpu"),
        (lambda: make().to("meta"), {}, CompactError, "on meta"),
        (lambda: of(Hooked()), {}, CompactError, "'layer1' has hooks"),
        (lambda: fast_of(make(), "reference"), {}, CompactError, "trains on rows already"),
        (make, {"backend": "triton"}, SpecError, "Unknown backend"),
        (make, {"norm_statistics": "some"}, SpecError, "Unknown norm_statistics"),
        (make, {"batch_size": 0}, SpecError, "batch_size is not usable"),
        (make, {"batch_size": 2.0}, SpecError, "batch_size is not usable"),
        (make, {"max_packed_bytes": -1}, SpecError, "max_packed_bytes is not usable"),
        (make, {"rows": ["layer1.conv1", "layer9"]}, SpecError, "layer9"),
        (make, {"input_size": (3, 32, 32)}, InputSizeError, "another size"),
        (lambda: make("hand-written"), {}, InputSizeError, "input_size"),
        (make, {"norm_statistics": "live", "rows": ["layer1.conv1"]}, CompactError, "conv1, layer1.conv2"),
        (make, {"norm_statistics": "live", "max_packed_bytes": 0}, CompactError, "max_packed_bytes"),
        (lambda: make("joined"), {"norm_statistics": "live", "input_size": SIZE}, CompactError, "1 masked ones"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_by_name_and_left_as_it_is(
    make_model: Callable[[], nn.Module], options: dict[str, object], error: type[Exception], says: str
) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(error, match=says):
        dcn.compact_training(model, **{"backend": "reference", **options})  # type: ignore[arg-type]
    assert model.training == before["training"][0]  # type: ignore[index]
    if next(model.parameters()).device.type != "meta":
        assert same(before, snapshot(model))


class CountsImages(nn.Module):
    """What it computes hangs on the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits * 2 if len(x) > 7 else logits


def test_a_network_whose_graph_holds_for_some_batches_only_is_refused() -> None:
    with pytest.raises(TraceError, match="number of images"):
        fast_of(CountsImages(), "reference")


@needs_c
def test_the_rows_of_a_plan_give_the_same_plan() -> None:
    first = fast_of(make())
    again = fast_of(make(), rows=first.plan.rows)
    assert again.plan == first.plan
    some = first.plan.rows[1:3]
    fewer = fast_of(make(), rows=some)
    assert fewer.plan.rows == some
    assert "training steps, forward and backward pass" in str(first.plan)
    none = fast_of(make(), rows=[])
    assert none.plan.rows == () and "training steps run as the model is" in str(none.plan)
    assert torch.equal(none(pictures()), make()(pictures()))


def rigged(monkeypatch: pytest.MonkeyPatch, images: float, rows: float, dense: float, compact: float) -> None:
    """Decide what every measurement finds; each call is made all the same."""
    steps = iter([dense, compact])

    def whole(call: Callable[[], object], **_: object) -> float:
        call()
        return next(steps)

    monkeypatch.setattr(training_model, "seconds", whole)
    layers: dict[int, float] = {}

    def layer(call: Callable[[], object], **_: object) -> float:
        call()
        layers[len(layers)] = 0.0
        return rows if "_on_rows" in getattr(call, "__qualname__", "") else images

    monkeypatch.setattr("dcn_plugin.engine.training.costs.seconds", layer)


@needs_c
@pytest.mark.parametrize("compact", [1.0, 0.96])
def test_a_race_that_rows_lose_leaves_the_model_as_it_is(compact: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged(monkeypatch, images=1.0, rows=0.01, dense=1.0, compact=compact)
    model = make()
    before, memory = snapshot(model), [p.grad for p in model.parameters()]
    fast = dcn.compact_training(model, batch_size=4)
    assert same(before, snapshot(model))
    assert [p.grad for p in model.parameters()] == memory
    if compact == 1.0:
        assert fast.plan.rows == ()
        assert "Rows would take 1000.0 ms a step, the model takes 1000.0 ms." in str(fast.plan)
        assert {layer.reason for layer in fast.plan.layers if layer.rows_ms} >= {
            "the whole step is faster without rows"
        }
    else:
        assert len(fast.plan.rows) == 4
        assert (fast.plan.dense_ms, fast.plan.compact_ms) == (1000.0, 960.0)
    assert_near(gradients(fast, pictures()), gradients(make(), pictures()))


class Watched(OneBlock):
    """Notes the memory format of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.formats.append(x.is_contiguous())
        return super().forward(x)


@needs_c
def test_a_race_hands_a_network_no_channels_last_images_that_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dcn.defectify(Watched(), p=0.4, input_size=SIZE, seed=1).train()
    rigged(monkeypatch, images=1.0, rows=0.01, dense=1.0, compact=0.5)
    assert dcn.compact_training(model, batch_size=4).plan.rows
    assert all(model.formats)


@needs_c
def test_layers_that_gain_nothing_are_left_on_images_without_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    rigged(monkeypatch, images=0.01, rows=1.0, dense=0.0, compact=0.0)
    fast = dcn.compact_training(make(), batch_size=4)
    assert fast.plan.rows == () and fast.plan.compact_ms is None
    assert {layer.reason for layer in fast.plan.layers} == {"images are faster here, conversions included"}


@needs_c
def test_measuring_for_real_draws_no_random_number_and_changes_nothing() -> None:
    model = make()
    before = snapshot(model)
    fast = dcn.compact_training(model, batch_size=3)
    assert same(before, snapshot(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_near(gradients(fast, pictures()), gradients(make(), pictures()))


@needs_c
def test_a_budget_of_nothing_leaves_every_layer_on_images() -> None:
    fast = fast_of(make(), max_packed_bytes=0)
    assert fast.plan.rows == ()
    assert any("go beyond max_packed_bytes" in layer.reason for layer in fast.plan.layers)


class LiveOracle(nn.Module):
    """A batch norm and its mask, whose statistics are over the neurons that the mask keeps, spelled out."""

    def __init__(self, norm: nn.BatchNorm2d, mask: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, mask[0]

    def forward(self, x: Tensor) -> Tensor:
        channels, norm = [], self.norm
        for number, kept in enumerate(self.kept):
            values = x[:, number][:, kept]
            mean, var = values.mean(), values.var(correction=0)
            with torch.no_grad():
                share = norm.momentum
                norm.running_mean[number] += share * (mean - norm.running_mean[number])
                norm.running_var[number] += share * (values.var() - norm.running_var[number])
            normed = (x[:, number] - mean) / (var + norm.eps).sqrt()
            channels.append((normed * norm.weight[number] + norm.bias[number]) * kept)
        norm.num_batches_tracked += 1
        return torch.stack(channels, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_live_statistics_are_those_of_the_neurons_that_masks_keep(backend: str) -> None:
    plain, model = twins()
    fast = fast_of(model, backend, norm_statistics="live")
    oracle = copy.deepcopy(plain)
    for name, module in list(oracle.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            masks = [buffer for buffer in module.buffers() if buffer.dtype == torch.bool]
            assert len(masks) == 1
            norm = nn.BatchNorm2d(module.num_features)
            norm.load_state_dict({key: value for key, value in module.state_dict().items() if key in norm.state_dict()})
            setattr(oracle.get_submodule(parent), last, LiveOracle(norm, masks[0]))
    assert sum(isinstance(module, LiveOracle) for module in oracle.modules()) == 4

    def renamed(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.replace(".norm.", "."): value for key, value in values.items()}

    assert_near(gradients(fast, pictures()), renamed(gradients(oracle, pictures())))
    state = {key: value for key, value in fast.state_dict().items() if value.dtype != torch.bool}
    assert_near(state, renamed(oracle.state_dict()))
    live, every = gradients(fast, pictures()), gradients(plain, pictures())
    assert max(float((live[key] - every[key]).abs().max()) for key in every) > 1e-3  # another network
    assert torch.equal(fast.eval()(pictures()), model(pictures()))
    shares = {layer.name: layer.live / layer.dense for layer in fast.plan.layers}
    assert shares["layer1.conv2"] < 0.3 < fast_share(make())["layer1.conv2"]


def fast_share(model: nn.Module) -> dict[str, float]:
    return {layer.name: layer.live / layer.dense for layer in fast_of(model, "reference").plan.layers}


@needs_c
def test_live_statistics_of_a_network_without_norms_are_the_same_network() -> None:
    plain, model = of(NoNorm()), of(NoNorm())
    model.load_state_dict(plain.state_dict())
    fast = fast_of(model, norm_statistics="live")
    assert_near(gradients(fast, pictures()), gradients(plain, pictures()))


@needs_c
def test_what_is_forgotten_leaves_no_lists_behind(lists: Callable[[], int]) -> None:
    model = make("joined")
    fast = fast_of(model)
    gradients(fast, pictures())
    assert lists() > 0
    invert(model)
    gradients(fast, pictures())
    before = lists()
    gone = weakref.ref(fast)
    del fast
    gc.collect()
    assert gone() is None
    assert lists() == 0 < before


@needs_c
def test_a_learnt_factor_of_zeros_or_ones_is_no_mask() -> None:
    for value in (0.0, 1.0):
        plain, model = twins("joined")
        for net in (plain, model):
            with torch.no_grad():
                net.gain.fill_(value)
        fast = fast_of(model)
        train(fast)
        train(plain)
        assert plain.gain.unique().numel() > 1
        assert_near(model.state_dict(), plain.state_dict())


@needs_c
def test_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(fast_of(make()))


@needs_c
def test_the_default_dtype_is_no_matter_of_the_engine() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        fast = dcn.compact_training(make().float(), batch_size=3)
        fast(pictures().float()).sum().backward()
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.float32}


@needs_c
def test_a_network_whose_weights_are_all_frozen_can_be_measured() -> None:
    model = make().requires_grad_(False)
    assert dcn.compact_training(model, batch_size=3)(pictures()).requires_grad is False
