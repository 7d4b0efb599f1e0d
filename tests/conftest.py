"""Settings every test shares: offline, few threads, seeded generators, reproducible Hypothesis runs."""

from __future__ import annotations

import os

# Before torch, timm and huggingface_hub are imported; processes that a test starts inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DCN_ENGINE_CACHE"] = os.environ["DCN_STEPS_CACHE"] = "off"
UNDER_XDIST = "PYTEST_XDIST_WORKER" in os.environ
if UNDER_XDIST:
    os.environ["OMP_NUM_THREADS"] = "1"

import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

SLOW_TIMEOUT_S = 900

if UNDER_XDIST:
    # One process a core already: more threads would only fight over the cores.
    torch.set_num_threads(1)

# No deadline: the first call of a torch op can take a second. In CI the same examples each time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the global generators before each test is set up: what it draws does not hang on the tests before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the global one)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Fail a test that leaves torch another number of threads: tests after it would round in another way."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"the test leaves {after} threads of torch, and found {before}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests their timeout, and skip GPU tests where there is no GPU."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
