from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from dcn_plugin import engine

KERNEL = Path(engine.__file__).with_name("kernel.c")
PROGRAM = Path(__file__).with_name("sanitized.c")
TRAINING = Path(__file__).with_name("sanitized_training.c")

pytestmark = pytest.mark.slow


def compiler() -> str:
    """The C compiler that Python was built with, or any other."""
    named = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "").split()
    found = next((path for one in (*named[:1], "cc", "gcc", "clang") if (path := shutil.which(one))), None)
    if found is None:
        pytest.skip("no C compiler")
    return found


def compiled(source: Path, output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        compiler(),
        "-std=c11",
        "-g",
        "-O1",
        *flags,
        f"-I{KERNEL.parent}",
        f"-I{PROGRAM.parent}",
        str(source),
        # Programs of training include training.c, and have the threads from kernel.c.
        *([str(KERNEL)] if '#include "training.c"' in source.read_text() else []),
        "-o",
        str(output),
        "-lm",
        "-pthread",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def sanitized(folder: Path, source: Path, sanitizers: str) -> subprocess.CompletedProcess[str]:
    flags = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if compiled(probe, folder / "probe", *flags).returncode or subprocess.run([folder / "probe"]).returncode:
        pytest.skip(f"this compiler has no -fsanitize={sanitizers}, or its programs cannot run here")
    built = compiled(source, folder / "program", *flags)
    assert built.returncode == 0, built.stderr
    # The kernel allocates nothing; the search for leaks needs rights that containers do not give.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([folder / "program"], capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.parametrize("program", [PROGRAM, TRAINING], ids=["inference", "training"])
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_kernel_stays_within_its_memory_and_within_the_language(
    sanitizers: str, program: Path, tmp_path: Path
) -> None:
    ran = sanitized(tmp_path, program, sanitizers)
    assert ran.returncode == 0 and not ran.stderr, ran.stdout + ran.stderr
    assert "widths" in ran.stdout


@pytest.mark.parametrize(
    ("program", "line", "wrong"),
    [
        (PROGRAM, "(int32_t)below(rows);", "(int32_t)rows;"),
        (TRAINING, "(int32_t)below(l.rows);", "(int32_t)l.rows;"),
        (TRAINING, "l.width * (2 * tile + BLOCK);", "l.width * (2 * tile + BLOCK) - 1;"),
    ],
)
def test_the_sanitizers_would_report_memory_that_is_not_there(
    program: Path, line: str, wrong: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.c"
    text = program.read_text()
    assert text.count(line) == 1
    broken.write_text(text.replace(line, wrong))
    ran = sanitized(tmp_path, broken, "address")
    assert ran.returncode != 0
    assert "heap-buffer-overflow" in ran.stderr


@pytest.mark.parametrize("program", [PROGRAM, TRAINING], ids=["inference", "training"])
def test_the_kernel_compiles_without_a_warning(program: Path, tmp_path: Path) -> None:
    built = compiled(program, tmp_path / "program", "-Wall", "-Wextra", "-Werror")
    assert built.returncode == 0, built.stderr
