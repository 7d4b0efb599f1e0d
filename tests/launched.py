"""Runs in processes of their own: several that work together, and some that are killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path


def launch(module: str, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a module in one process or in several, which set their threads to one.

    `accelerate launch --cpu` starts several only through MPI; torchrun sets the same variables.
    """
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(several if processes > 1 else []), "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def launched(module: str, *arguments: str) -> str:
    """What two processes print, which end well."""
    done = launch(module, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_at_random(
    start: Callable[[], ForkServerProcess], progress: Callable[[], int], *, kills: int, seed: int, longest: float
) -> None:
    """Start a process ``kills`` times and kill it at a random moment.

    Args:
        start: gives the running process.
        progress: a number that grows with what is on disk; once it is more than at the last kill, the run is past what
            it reuses.
        kills: stops earlier if the run ends before it is killed.
        seed: of the moments.
        longest: seconds between progress and kill.
    """
    moments, last = random.Random(seed), 0
    for _ in range(kills):
        process = start()
        while process.is_alive() and progress() <= last:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, longest))
        ended = not process.is_alive()
        process.kill()
        process.join()
        last = progress()
        if ended:
            break
