import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

import dcn_plugin as dcn
from dcn_plugin.support.model_state import copy_of

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """Keeps what it computed last, as code that looks at activations does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        self.seen = [self.norm(self.conv(x))]
        return self.fc(self.seen[0].relu().mean((2, 3)))


def weight_normed() -> nn.Module:
    conv = weight_norm(nn.Conv2d(3, 4, 3))
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Keeps() if kind == "kept" else weight_normed()


pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


@pytest.mark.parametrize("kind", ["kept", "weight_norm"])
def test_a_network_with_tensors_of_a_graph_is_copied(kind, tmp_path):
    net = make(kind)
    defective = dcn.defectify(net, "all", p=0.5, input_size=(3, 12, 12))
    defective(IMAGES).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(defective)
    defective.eval()
    plain = dcn.undefectify(defective)
    assert torch.equal(plain(IMAGES), dcn.undefectify(copy_of(defective))(IMAGES))
    dcn.save_checkpoint(defective, tmp_path / "net.safetensors")
    loaded = dcn.load_checkpoint(tmp_path / "net.safetensors", make(kind)).eval()
    assert torch.equal(loaded(IMAGES), defective(IMAGES))
    again = dcn.defectify(plain, "all", p=0.5, input_size=(3, 12, 12))
    assert torch.equal(again(IMAGES), defective(IMAGES))


def test_a_copy_has_parameters_of_its_own_unless_asked_otherwise():
    net = make("kept")
    assert not any(ours is theirs for ours, theirs in zip(copy_of(net).parameters(), net.parameters(), strict=True))
    shared = copy_of(net, share_parameters=True)
    assert all(ours is theirs for ours, theirs in zip(shared.parameters(), net.parameters(), strict=True))
    assert shared.norm.running_mean is not net.norm.running_mean
