"""Experiments: train what is missing, measure, record."""

from dcn_plugin.experiments.choose import Candidate, Choice, Trial, choose_defects
from dcn_plugin.experiments.demo import BASELINE, DemoOutcome, DemoSpec, run_demo
from dcn_plugin.experiments.paper_tables import PaperTable, paper_numbers
from dcn_plugin.experiments.recipe import RecipeSpec, list_recipes, load_recipe
from dcn_plugin.experiments.run import Outcome, Plan, plan_recipe, run_recipe
from dcn_plugin.experiments.verdict import Verdict, verdict_of

__all__ = [
    "BASELINE",
    "Candidate",
    "Choice",
    "DemoOutcome",
    "DemoSpec",
    "Outcome",
    "PaperTable",
    "Plan",
    "RecipeSpec",
    "Trial",
    "Verdict",
    "choose_defects",
    "list_recipes",
    "load_recipe",
    "paper_numbers",
    "plan_recipe",
    "run_demo",
    "run_recipe",
    "verdict_of",
]
