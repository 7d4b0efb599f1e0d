# %% [markdown]
# # Write a recipe
#
# A recipe is an experiment in a TOML file: networks, protocols, attacks, at three scales. It trains what is missing,
# resumes after a kill, and writes a record that can be committed. Every table of the paper is one; this page writes
# one of its own: does it matter **where** the masks go?

# %%
from pathlib import Path

from dcn_plugin.cli import main

Path("places.toml").write_text(
    """
reproduces = "Beyond the paper"
title = "Masks at the bottom, at the top, or everywhere"
data = "cifar10"
net = "resnet18"

[rows]
"Standard" = "Standard"
"bottom" = "0.5-Bottom"
"top" = "0.5-Top"
"both" = "0.5-Bottom, 0.5-Top"

[[measure]]
protocol = "transfer"
sources = ["densenet121"]
attacks = { pgd16 = "pgd(1,20,16)" }    # step, steps, eps in grey levels

[[measure]]
protocol = "gaussian"
levels = [32]
columns = "noise {level}"
"""
)

# %% [markdown]
# A row is a network, named as in the paper's tables: `0.5-Bottom` keeps half of the neurons of the bottom blocks.
# `main` is the command `defective`; on a shell you would write `defective recipe run places.toml --dry-run`.

# %%
main(["recipe", "run", "places.toml", "--scale", "smoke", "--out", "runs", "--dry-run"])

# %% [markdown]
# At scale `smoke` the networks are tiny, trained for an epoch on embedded digits. It shows that the recipe runs, and
# its numbers mean nothing; the table says so itself.

# %%
main(["recipe", "run", "places.toml", "--scale", "smoke", "--out", "runs", "--no-progress"])

# %% [markdown]
# Run again, and nothing is left to do: networks, cells and adversarial images are kept, and shared by all recipes of
# the same `--out`.

# %%
main(["recipe", "run", "places.toml", "--scale", "smoke", "--out", "runs", "--dry-run"])

# %% [markdown]
# The expected time comes with bounds and holds for a machine that nothing else uses
# ([measured](../measured/bench_estimate.md)). For numbers that mean something, run it at scale `small` (two cores,
# hours) or `full` (the paper's networks) with `--data CIFAR_ROOT`. To keep it, make it a folder
# `recipes/places/recipe.toml` and commit its `record.json` beside it. All entries are described in
# [recipes](../howto/recipes.md).
#
# A misspelt entry is an error that names the nearest:

# %%
Path("wrong.toml").write_text(Path("places.toml").read_text().replace("pgd(1,20,16)", "pdg(1,20,16)"))
print(main(["recipe", "run", "wrong.toml", "--scale", "smoke"]))
