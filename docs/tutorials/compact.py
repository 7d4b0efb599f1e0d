# %% [markdown]
# # Compact inference
#
# A defective neuron is zero for every image, so nobody has to compute it. `compact` makes a snapshot of a network
# that skips such neurons: same outputs up to rounding, fewer multiplications.

# %%
import textwrap
import time

import timm
import torch

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD

torch.manual_seed(0)
net = timm.create_model("defective_resnet18_cifar", blocks="paper", p=0.1).eval()
fast = dcn.compact(net)
print(fast.plan)

# %% [markdown]
# The plan says for every layer what it would cost, what is left to compute, and why it runs as it does. What
# might gain is timed on this machine, and a layer that would be slower stays dense. What is left to
# compute lies mostly in the top half, which has no masks of its own; that limits what can be won.
#
# The last lines say how batches of each size run. The whole is raced against the network as it is, at the few batch
# sizes that the plan names; for the others it follows from what it took there, with a reserve. Where it is not faster,
# batches run on images, or as the network is. Other programs on the machine do not decide: beside them the CPU time of
# one thread counts, and a small gain is not taken. A batch is cut into pieces of sizes that were raced only if the
# graph proves that the network keeps its images apart; one that normalises by its batch does not.
#
# What was measured stays in small files, in the folder in which torch keeps downloads: a second network of the same
# layers and kinds of masks is not measured again, and of another network only the layers that no earlier one had.
# `use_cache=False` measures anew; the variable `DCN_ENGINE_CACHE` names another folder, or is `off`.
#
# ## The same outputs

# %%
images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    ours, theirs = fast(images), net(images)
print(f"largest difference {(ours - theirs).abs().max():.1e}, largest logit {theirs.abs().max():.1e}")


# %% [markdown]
# ## The time
#
# Best of five, one after the other, on one thread.


# %%
def seconds(model: torch.nn.Module) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        model(images)
    return time.perf_counter() - start


seconds(net), seconds(fast)  # warm up
pairs = [(seconds(net), seconds(fast)) for _ in range(5)]
plain, compacted = (min(column) for column in zip(*pairs, strict=True))
print(f"masked {1000 * plain:.0f} ms, compact {1000 * compacted:.0f} ms: {plain / compacted:.2f} times as fast")

# %% [markdown]
# This is one measurement on the machine that built the page. Careful ones, with the dense network beside it, are in
# [the engine's benchmark](../measured/bench_engine.md).
#
# ## Attack it
#
# The snapshot is differentiable with respect to its input, so that attacks on a defective network, as a source or
# white-box, run on it too.

# %%
labels = torch.zeros(8, dtype=torch.long)
on_net = PGD(8 / 255, steps=3)(net, images[:8], labels).images
on_fast = PGD(8 / 255, steps=3)(fast, images[:8], labels).images
print(f"{(on_net == on_fast).float().mean():.1%} of the pixels are equal")

# %% [markdown]
# ## What it is not
#
# It is a snapshot. It cannot be trained, and weights cannot be loaded into it: change the network and compact it
# again. What is saved is the defective network, in a [checkpoint](../howto/checkpoints.md).

# %%
try:
    dcn.compact(net.train())
except dcn.errors.DcnError as error:
    print(textwrap.fill(str(error), 80))
