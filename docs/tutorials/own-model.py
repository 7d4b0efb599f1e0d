# %% [markdown]
# # Defectify your own model
#
# You have a CNN in plain PyTorch. This page makes it defective, looks at what changed, saves it, and undoes it.

# %%
import copy
import textwrap

import torch
from torch import nn

import dcn_plugin as dcn


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.norm2(self.conv2(x)).relu()


class Net(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.early = Block(3, 16, stride=1)
        self.middle = Block(16, 32, stride=2)
        self.late = Block(32, 64, stride=2)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.late(self.middle(self.early(x)))
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
net = Net()

# %% [markdown]
# ## One call
#
# `defectify` runs the model once to read its data flow: which convolution feeds which norm, and at which resolution.
# You tell it the size of your images, because a mask has a size.

# %%
mine = dcn.defectify(net, blocks="bottom", p=0.3, input_size=(3, 32, 32))
print(dcn.summary(mine))

# %% [markdown]
# `bottom` is the first half of the blocks, rounded up: here `early` and `middle`. `mine` is a copy. It is still a
# `Net`, its parameters have the names they had, and the state dict has grown by one mask a site.

# %%
print(type(mine).__name__, dict(mine.named_parameters()).keys() == dict(net.named_parameters()).keys())
print("\n".join(sorted(set(mine.state_dict()) - set(net.state_dict()))))

# %% [markdown]
# Behind the first norm, seven in ten neurons are exactly zero, for every image, in training and in test:

# %%
images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
mine.eval()
with torch.no_grad():
    after_norm = mine.early.norm1(mine.early.conv1(images))
silent = (after_norm == 0).all(dim=0)
print(f"{silent.float().mean():.1%} of the neurons are zero on all {len(images)} images")

# %% [markdown]
# ## Does the mask still act?
#
# Tools that rewrite modules can drop a mask. `verify` runs the model and raises if one no longer acts. Call it after
# every converter; [interoperability](../interop.md) lists what is known to keep the masks and what is not.

# %%
dcn.verify(mine)

broken = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(mine))
try:
    dcn.verify(broken)
except dcn.errors.MaskLostError as error:
    print(textwrap.fill(str(error), 80))

# %% [markdown]
# ## Other choices
#
# `blocks` takes "bottom", "top", "all", block numbers, or globs over module names; `p` may differ from block to
# block. What matches nothing is an error that lists what there is, before anything is touched.

# %%
other = dcn.defectify(net, ("early.*", "late.norm2"), p=0.5, mode="channel", input_size=(3, 32, 32))
print(dcn.summary(other))

try:
    dcn.defectify(net, blocks=("layer1",), input_size=(3, 32, 32))
except dcn.errors.BlockError as error:
    print(textwrap.fill(str(error), 80))

# %% [markdown]
# ## Save, load, undo
#
# A checkpoint is one safetensors file with weights, masks and how they were made. Reading it runs no code.

# %%
dcn.save_checkpoint(mine, "mine.safetensors")
again = dcn.load_checkpoint("mine.safetensors", model=Net()).eval()
with torch.no_grad():
    print(torch.equal(again(images), mine(images)))

plain = dcn.undefectify(mine)
print(dcn.is_defective(plain), set(plain.state_dict()) == set(net.state_dict()))

# %% [markdown]
# ## A network written from scratch
#
# `DefectiveConv2d` is the paper's layer: convolution, norm, mask. Give every layer its own `site` number, so that
# their masks are independent.

# %%
layer = dcn.DefectiveConv2d(
    3, 16, kernel_size=3, padding=1, bias=False, output_size=(32, 32), site=0, p=0.3, norm=nn.BatchNorm2d(16)
)
print(torch.relu(layer(images)).shape, dcn.summary(layer).kept)

# %% [markdown]
# A defective network has to be trained, or fine-tuned, with its masks: see [train and evaluate](train-evaluate.md), and
# [from the network you have](from-your-network.md).
