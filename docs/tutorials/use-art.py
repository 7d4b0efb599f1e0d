# %% [markdown]
# # ART: defend and attack
#
# With the [Adversarial Robustness Toolbox](https://github.com/Trusted-AI/adversarial-robustness-toolbox) a defective
# network is a classifier like any other: ART trains it, ART attacks it. You need `pip install "dcn-plugin[art]"`.
#
# The defence lives in the `nn.Module`, not in an ART wrapper: ART copies, rebuilds and resets estimators, and what it
# builds around a defective network stays defective.

# %%
import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent, SquareAttack
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.adapters.art import DcnHopSkipJump, DefectiveClassifier, DefectiveTransformer
from dcn_plugin.data import load_digits
from dcn_plugin.models import cifar_resnet
from dcn_plugin.training import isolated_rng

digits = load_digits(size=16)
x, y = digits.train.images.numpy(), digits.train.labels.numpy()
x_test, y_test = digits.test.images[:100].numpy(), digits.test.labels[:100].numpy()

# %% [markdown]
# ## A classifier
#
# `DefectiveClassifier` is ART's `PyTorchClassifier` with the same constructor; it takes defective and plain networks
# alike.


# %%
def classifier(seed: int) -> DefectiveClassifier:
    with isolated_rng(seed):
        net = cifar_resnet((1, 1, 1, 1), in_chans=1, width=16)
    return DefectiveClassifier(
        net,
        nn.CrossEntropyLoss(),
        input_shape=(1, 16, 16),
        nb_classes=10,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3),
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


# %% [markdown]
# ## The defence, as ART's transformers go
#
# `DefectiveTransformer` returns a defective copy. The paper trains from fresh weights, so it gets a classifier that
# is not trained yet. `fit` is ART's own.

# %%
defective = DefectiveTransformer(classifier(seed=0), blocks="bottom", p=0.1)()
standard, attacker = classifier(seed=0), classifier(seed=1)
for trained in (standard, defective, attacker):
    with isolated_rng(2):  # ART shuffles with NumPy's global generator, torch draws from its own
        trained.fit(x, y, batch_size=64, nb_epochs=6)
print(dcn.summary(defective.model))

# %% [markdown]
# ## Transfer: the attacker has another network
#
# ART makes the images on the attacker's classifier; the other two only see them.
#
# All figures below are of images that the three have right when clean. An image that is wrong already has nothing to
# lose: an untargeted attack may even turn it into one that is right, and that would count as robustness.


# %%
def right(one: DefectiveClassifier, images: np.ndarray) -> np.ndarray:
    return one.predict(images).argmax(1) == y_test


def accuracy(one: DefectiveClassifier, images: np.ndarray) -> str:
    return f"{np.mean(right(one, images)):.0%}"


clean = {one: accuracy(one, x_test) for one in (attacker, standard, defective)}
kept = np.all([right(one, x_test) for one in clean], axis=0)
x_test, y_test = x_test[kept], y_test[kept]
print(f"{len(x_test)} of {len(kept)} images are right when clean for all three")

pgd = ProjectedGradientDescent(attacker, eps=0.2, eps_step=0.0125, max_iter=20, verbose=False)
sent = pgd.generate(x_test, y_test)
for name, one in {"attacker": attacker, "standard": standard, "defective": defective}.items():
    print(f"{name:<10} clean {clean[one]}, transferred PGD {accuracy(one, sent)}")

# %% [markdown]
# ## Direct: the attacker has this network, or may query it at will
#
# The same attack on the defective network itself, and Square, which only asks for scores. Both get through. That is
# what the defence does not cover, and ART is the place to check it before you believe a transfer figure.

# %%
pgd = ProjectedGradientDescent(defective, eps=0.2, eps_step=0.0125, max_iter=20, verbose=False)
print("PGD   ", accuracy(defective, pgd.generate(x_test, y_test)))
np.random.seed(0)  # noqa: NPY002  (ART's Square draws from NumPy's global generator)
square = SquareAttack(defective, eps=0.2, max_iter=200, p_init=0.3, verbose=False)
print("Square", accuracy(defective, square.generate(x_test, y_test)))

# %% [markdown]
# ## Our attacks in ART
#
# Boundary, HopSkipJump, CW and PGD of this package also come as ART evasion attacks. They work on whole batches, and
# each image has its own random stream: the batch size does not change the result.

# %%
hop = DcnHopSkipJump(defective, max_queries=500, seed=0)
found = hop.generate(x_test[:10], y_test[:10])
print(np.square(found - x_test[:10]).reshape(10, -1).mean(1).round(5))

# %% [markdown]
# The same comparison with more attacks and a committed record: [under ART's attacks](../measured/art_evaluation.md).
