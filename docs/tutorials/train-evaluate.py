# %% [markdown]
# # Train and evaluate
#
# Three small networks on scikit-learn's handwritten digits: one that the attacker owns, a standard one, and a
# defective one. The attacker makes images on their own network and sends them to the other two. It runs in under a
# minute on one core; the figures below were computed when this page was built, by this very script.

# %%
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD
from dcn_plugin.data import load_digits
from dcn_plugin.evaluate import RunDirectory, gaussian, sanity, transfer, whitebox
from dcn_plugin.models import cifar_resnet
from dcn_plugin.report import load_run, write_report
from dcn_plugin.training import TrainConfig, isolated_rng, train

digits = load_digits(size=16)
print(len(digits.train), len(digits.val), len(digits.test), digits.train.shape)

# %% [markdown]
# ## Train
#
# `train` is one loop in plain PyTorch. Standard and defective network start from the same weights and see the same
# batches; only the masks differ. The attacker's network has another seed.


# %%
def network(seed: int, p: float | None = None) -> nn.Module:
    with isolated_rng(seed):  # the global generator is left as it is
        net = cifar_resnet((1, 1, 1, 1), in_chans=1, width=16)
    if p is not None:
        net = dcn.defectify(net, blocks="bottom", p=p, seed=seed, input_size=digits.train.shape)
    result = train(net, digits.train, TrainConfig(epochs=6, weight_decay=5e-3, shift=1, seed=seed), val=digits.val)
    print(f"seed {seed}, p={p}: {result.history.epochs[-1].val_accuracy:.1%} on the validation images")
    return net


source = network(1)
targets = {"standard": network(0), "defective": network(0, p=0.1)}

# %% [markdown]
# ## Measure
#
# Every protocol returns records with counts, intervals, seed, versions and hardware. A `RunDirectory` keeps finished
# records and adversarial images, so that a run that was stopped goes on, and a target added later meets the same
# images.

# %%
run = RunDirectory("run")
results = [
    *transfer(
        {"attacker": source},
        targets,
        [PGD(eps, steps=20) for eps in (0.1, 0.2)],
        digits.test,
        training_seed=0,
        store=run,
    ),
    *gaussian(targets, digits.test, (0.2, 0.4), training_seed=0, store=run),
    *whitebox(targets, [PGD(0.1, steps=20)], digits.test, training_seed=0, store=run),
]
run.finish({"what": "tutorial"}, results)
report = load_run("run", baseline="standard")
print(report.to_text())

# %% [markdown]
# Read the white-box table first: an attacker who **has** the network breaks it, masks or not. The defence is about
# the attacker who has not. And this is one training run of each: single runs of this set-up differ by ten points and
# more, so the [demo](../index.md#does-it-work) takes three seeds, and you should too.
#
# ## Signs of gradient masking
#
# A network may look robust because the attack stumbled. `sanity` runs six checks; one that fails is a reason to
# distrust every figure above.

# %%
for check in sanity(targets["defective"], digits.test.subset(torch.arange(100)), eps=0.1, sources={"attacker": source}):
    print(f"{'pass' if check.passed else 'FAIL'}  {check.attack}: {check.figures}")

# %% [markdown]
# ## A page to pass on

# %%
files = write_report(report, "report")
print([file.name for file in files])

# %% [markdown]
# ![Accuracy of both networks under transferred PGD images, by eps](report/transfer_accuracy.png)
#
# [The whole report](report/report.html), one file with tables, plots and the words above. The same from the command
# line: [measuring robustness](../evaluate.md#from-the-command-line).
