# %% [markdown]
# # From the network you have
#
# You have a trained network. Masks silence neurons that it relies on, so that a defective copy of it knows little at
# first. This page goes the way from there to a defective network, on handwritten digits and with networks that come
# with the package: put masks in, recalibrate the norms, and fine-tune while neurons die a few at a time.
#
# The figures below were computed when this page was built. They are of one small network: what fine-tuning gains and
# costs on CIFAR-10 is [measured](../measured/fine_tuning.md) over several seeds.

# %%
import torch

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD
from dcn_plugin.data import load_digits
from dcn_plugin.evaluate import correct_on, transfer
from dcn_plugin.pretrained import load_pretrained
from dcn_plugin.training import TrainConfig, train

digits = load_digits(size=16)
trained = load_pretrained("digits_resnet.standard")  # yours, in the place of this one


def accuracy(network: torch.nn.Module) -> str:
    return f"{correct_on(network, digits.test).double().mean():.1%} of the test images"


print(accuracy(trained))

# %% [markdown]
# ## Masks, and nothing else
#
# `defectify` keeps the weights and puts masks behind the norms of the bottom blocks. Seven in ten neurons of these are
# zero now, and the network has never seen that.

# %%
masked = dcn.defectify(trained, p=0.3, input_size=(1, 16, 16))
print(accuracy(masked))

# %% [markdown]
# ## Recalibrate
#
# The running statistics of the norms are still those of activations without masks. `recalibrate` measures them anew on
# some of your training images. No weight is touched, and it takes a moment. How much it brings depends on how much is
# masked; it is the first step, seldom the last.

# %%
dcn.recalibrate(masked, digits.train)
print(accuracy(masked))

# %% [markdown]
# ## Fine-tune, with gradual defects
#
# Masks of one seed are nested: with a larger `p` they keep what they keep with a smaller one, and more. So `p` can fall
# from 1 to its goal while the network is trained, and no dead neuron comes back. `gradual="linear"` does that over the
# first half of the steps; the masks that are left are those of `defectify`, bit for bit.

# %%
gradual = dcn.defectify(trained, p=0.3, input_size=(1, 16, 16))
result = train(gradual, digits.train, TrainConfig(epochs=6, lr=0.03, shift=1, gradual="linear"))
for epoch in result.history.epochs:
    print(f"epoch {epoch.epoch + 1}: loss {epoch.loss:.3f}, masks {epoch.mask_progress:.0%} of their way")
print(accuracy(gradual))
print(dcn.summary(gradual))

# %% [markdown]
# The same with all masks at once, and a smaller price with a larger `p`:

# %%
sudden = dcn.defectify(trained, p=0.3, input_size=(1, 16, 16))
train(sudden, digits.train, TrainConfig(epochs=6, lr=0.03, shift=1))
mild = dcn.defectify(trained, p=0.6, input_size=(1, 16, 16))
train(mild, digits.train, TrainConfig(epochs=6, lr=0.03, shift=1, gradual="linear"))
print("sudden, p=0.3:", accuracy(sudden))
print("gradual, p=0.6:", accuracy(mild))

# %% [markdown]
# ## What did it bring?
#
# An attacker makes images on a network of their own and sends them. A second attacker has the network that you started
# from: your fine-tuned one is a relative of it, so look at both.

# %%
targets = {
    "trained": trained,
    "recalibrated": masked,
    "gradual p=0.3": gradual,
    "sudden p=0.3": sudden,
    "gradual p=0.6": mild,
    "from scratch p=0.3": load_pretrained("digits_resnet.defective_p0.3"),
}
sources = {"other network": load_pretrained("digits_resnet.source"), "the one you had": trained}
for record in transfer(sources, targets, [PGD(0.2, steps=20)], digits.test, training_seed=0):
    print(f"{record.source:16} {record.target:19} clean {record.clean_accuracy:6.1%}, right {record.accuracy_all:6.1%}")

# %% [markdown]
# Look at the second source. A fine-tuned network stays a near relative of the one it came from: whoever has that one,
# say because you fine-tuned a public network, makes images on it that the masks do little against. A network that was
# defective from the start has no such relative.
#
# This is one run of each. Differences of some points under the first source are chance, and the network from scratch
# was trained for longer. Whether fine-tuned networks withstand less of it too is a matter for the
# [record](../measured/fine_tuning.md).
#
# ## On the command line
#
# ```sh
# defective train defective_resnet18,p=0.3 --init-from base --defects gradual --data folder:PHOTOS/train --out run
# defective train module:my_network --init-from net.pth --defects gradual,p=0.3 --data folder:PHOTOS/train --out run
# defective choose module:my_network --init-from net.pth --lose 2 --data folder:PHOTOS/train --out choice
# ```
#
# The last one finds the `p` for you: you say how many points of clean accuracy you can afford, it fine-tunes several
# candidates for a few epochs, lets the better half go on, and prints a table and the command that makes the chosen one.
# [In your own training loop](../howto/gradual.md), plain, timm's or Lightning's, it is two lines more.
