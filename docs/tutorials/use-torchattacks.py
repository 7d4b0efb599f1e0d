# %% [markdown]
# # torchattacks and the transfer matrix
#
# Which images, made on which network, fool which other network? You need `pip install "dcn-plugin[attacks]"` for
# [torchattacks](https://github.com/Harry24k/adversarial-attacks-pytorch).

# %%
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.adapters.torchattacks import BoundaryAttack, TorchAttack
from dcn_plugin.attacks import PGD
from dcn_plugin.data import load_digits
from dcn_plugin.evaluate import tapm, transfer
from dcn_plugin.models import cifar_resnet, cifar_vgg
from dcn_plugin.pretrained import load_pretrained
from dcn_plugin.report import Report, write_report
from dcn_plugin.training import TrainConfig, isolated_rng, train

digits = load_digits(size=16)
sources = {"resnet": load_pretrained("digits_resnet.source")}
targets = {
    "standard": load_pretrained("digits_resnet.standard"),
    "defective": load_pretrained("digits_resnet.defective_p0.3"),
}

# %% [markdown]
# These three [come with the package](../howto/pretrained.md). Two more sources are trained here: one of another
# architecture, and an **adaptive attacker**, who knows the method and trains a defective network with masks of their
# own.


# %%
def trained(net: nn.Module) -> nn.Module:
    train(net, digits.train, TrainConfig(epochs=6, weight_decay=5e-3, shift=1, seed=1))
    return net


with isolated_rng(1):
    vgg, resnet = cifar_vgg(in_chans=1, width=8), cifar_resnet((2, 2, 1, 1), in_chans=1, width=16)
sources["vgg"] = trained(vgg)
sources["adaptive"] = trained(dcn.defectify(resnet, p=0.3, seed=1, input_size=digits.train.shape))

# %% [markdown]
# ## torchattacks under the same roof
#
# `TorchAttack` runs an attack of torchattacks as one of ours: seeded, with the global generators and the model's
# flags put back, and with each result checked to lie in the ball. Its step `alpha` follows `eps` unless you give it;
# torchattacks' own stays at 2/255, and ten such steps would not get half as far as 0.15 here.

# %%
attacks = [PGD(0.15, steps=20), TorchAttack("MIFGSM", eps=0.15, steps=10), TorchAttack("DIFGSM", eps=0.15, steps=10)]
one = attacks[1](sources["resnet"], digits.test.images[:8], digits.test.labels[:8])
print(one.status, one.queries.tolist())

# %% [markdown]
# ## The matrix
#
# Attacks of torchattacks that draw random numbers draw them for pieces of `batch` images (64), so that a result does
# not depend on the batch size of the run; that batch size has to be a multiple of `batch`.
#
# Every source under every attack, shown to every target. A record says how source and target are related.

# %%
images = digits.test.subset(torch.arange(200))
results = list(transfer(sources, targets, attacks, images, training_seed=0))
for result in results:
    print(
        f"{result.source:<9} {result.attack:<7} -> {result.target:<10} {result.relation:<14} "
        f"accuracy {result.accuracy_all:6.1%}, defence rate {result.n_defended}/{result.n_counted}"
    )

# %% [markdown]
# Read it row by row. The gain is not the same everywhere: there are sources and attacks under which the defective
# network does no better than the standard one, or worse. And compare the targets under the adaptive source, in the last
# rows: there the masks are no advantage.
#
# ## The worst of all
#
# An attacker sends the image that works. TAPM counts an image as held only if the target withstands **every** source
# and attack on it, and with the adaptive source among them it is the figure to quote.

# %%
worst = list(tapm(sources, targets, attacks, images, training_seed=0))
for result in worst:
    print(f"{result.target:<10} holds {result.n_correct} of {result.n_total}")

# %%
report = Report(title="Transfer matrix on digits", results=[*results, *worst], baseline="standard")
print([file.name for file in write_report(report, "report")])

# %% [markdown]
# ![Heat map: accuracy of both targets under the first attack, by source](report/matrix_accuracy_01.png)
#
# [The report](report/report.html) has a heat map for each attack, and all counts.
#
# ## The other way round
#
# Our attacks are also torchattacks': subclasses of `torchattacks.attack.Attack`, for code that is written against it.

# %%
found = BoundaryAttack(targets["defective"], max_queries=300)(images.images[:4], images.labels[:4])
print((found - images.images[:4]).flatten(1).norm(dim=1))
