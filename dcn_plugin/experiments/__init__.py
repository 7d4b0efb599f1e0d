"""Experiments: train what is missing, measure, record."""

from dcn_plugin.experiments.demo import BASELINE, DemoOutcome, DemoSpec, run_demo

__all__ = ["BASELINE", "DemoOutcome", "DemoSpec", "run_demo"]
