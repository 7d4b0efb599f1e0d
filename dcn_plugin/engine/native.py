"""The C backend: finds the compiled kernel, and hands it pointers."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.packing import Packed, Windows
from dcn_plugin.errors import SpecError

__all__ = [
    "Gemm",
    "address",
    "lanes",
    "lanes_for",
    "loaded",
    "native_problem",
    "run_maxima",
    "to_dense",
    "to_rows",
]

MOST_LANES = "DCN_ENGINE_LANES"

_POINTERS = (
    ("x", "weights", "bias", "residual", "out"),
    ("reads", "writes", "residual_rows"),
    ("read_start", "write_start", "chunks"),
)


class _Gemm(ctypes.Structure):
    """``dcn_gemm`` of kernel.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for part in _POINTERS for name in part),
        ("chunk_count", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("relu", ctypes.c_int64),
    )


class _Move(ctypes.Structure):
    """``dcn_move`` of kernel.c."""

    _fields_ = (
        ("row_of_cell", ctypes.c_void_p),
        ("dense", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("cells", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("to_rows", ctypes.c_int64),
    )


class _Maxima(ctypes.Structure):
    """``dcn_maxima`` of kernel.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("reads", ctypes.c_void_p),
        ("read_start", ctypes.c_void_p),
        ("with_zero", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("batch", ctypes.c_int64),
    )


@cache
def _library() -> ctypes.CDLL | str:
    """The kernel, or why there is none."""
    files = [Path(__file__).with_name(f"_kernel{end}") for end in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return "it was not compiled when the package was installed (no C compiler?)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    library.dcn_lanes.restype = ctypes.c_int64
    library.dcn_use_openmp.argtypes = (ctypes.c_void_p,)
    library.dcn_run_gemm.argtypes = (ctypes.POINTER(_Gemm), ctypes.c_int64, ctypes.c_int64)
    library.dcn_run_move.argtypes = (ctypes.POINTER(_Move), ctypes.c_int64)
    library.dcn_run_maxima.argtypes = (ctypes.POINTER(_Maxima), ctypes.c_int64)
    for function in (library.dcn_use_openmp, library.dcn_run_gemm, library.dcn_run_move, library.dcn_run_maxima):
        function.restype = None
    library.dcn_use_openmp(_gomp_parallel())
    return library


def _gomp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that PyTorch brought along; None: the kernel starts threads."""
    if platform.system() != "Linux":
        return None
    for file in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        # Loaded already; this only asks for it.
        return ctypes.cast(ctypes.CDLL(str(file)).GOMP_parallel, ctypes.c_void_p).value
    return None


def native_problem() -> str | None:
    """Why the C kernel cannot be used; None: it can."""
    library = _library()
    return library if isinstance(library, str) else None


def loaded() -> ctypes.CDLL:
    """The kernel, where :func:`native_problem` names none."""
    library = _library()
    assert not isinstance(library, str), library
    return library


@cache
def lanes() -> int:
    """Values that one instruction takes: what this machine has, 16 (AVX-512), 8 (AVX2) or 4.

    The environment's ``DCN_ENGINE_LANES`` sets an upper bound, to see how fast a machine with less would be.

    Raises:
        SpecError: that is no number of lanes.
    """
    most = os.environ.get(MOST_LANES, "16")
    if most not in ("1", "4", "8", "16"):
        raise SpecError(f"{MOST_LANES} is no number of lanes.", most, "1, 4, 8 or 16")
    return min(int(most), int(loaded().dcn_lanes()))


def lanes_for(batch: int) -> int:
    """How many images of a batch an instruction takes."""
    return next(width for width in (16, 8, 4, 1) if width <= min(batch, lanes()))


def address(array: NDArray[np.generic] | None) -> int | None:
    """Where an array lies in memory."""
    return None if array is None else array.ctypes.data


class Gemm:
    """Lists as the kernel takes them: their addresses are looked up once, which takes longer than a small layer.

    Args:
        packed: the lists.
    """

    def __init__(self, packed: Packed) -> None:
        self.packed = packed  # keeps alive what the addresses point to
        lists = ("weights", "bias", *_POINTERS[1], *_POINTERS[2])
        self._blank = _Gemm(
            chunk_count=len(packed.chunks) - 1, **{name: address(getattr(packed, name)) for name in lists}
        )

    def __call__(self, x: Tensor, out: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> None:
        """Fill the rows of ``out`` that the lists compute.

        Args:
            x: float32 (rows, N), contiguous, on the CPU; ``residual`` and ``out`` too. The rows that the lists name lie
                within them.
            out: overwritten.
            residual: added before ``relu``; if and only if packed with its rows.
            relu: negative values become 0.
        """
        batch = x.shape[1]
        if batch == 0 or not len(self.packed.writes):
            return
        job = _Gemm.from_buffer_copy(self._blank)  # its own: threads may run the same layer
        job.x, job.out, job.batch, job.relu = x.data_ptr(), out.data_ptr(), batch, relu
        if residual is not None:
            job.residual = residual.data_ptr()
        loaded().dcn_run_gemm(ctypes.byref(job), lanes_for(batch), torch.get_num_threads())


def to_rows(images: Tensor, row_of_cell: NDArray[np.int32], out: Tensor, named: int) -> None:
    """Images -> rows.

    Args:
        images: float32 (N, C, H, W).
        row_of_cell: int32, row or -1 of each cell, by position, then by channel.
        out: (rows, N), overwritten.
        named: how many rows ``row_of_cell`` names; the others become 0.
    """
    if named < len(out):
        out.zero_()
    _move(images.contiguous(memory_format=torch.channels_last), row_of_cell, out, to_rows=True)


def to_dense(x: Tensor, row_of_cell: NDArray[np.int32], shape: tuple[int, int, int]) -> Tensor:
    """Rows (rows, N) -> images (N, C, H, W) in channels_last memory format, zero where no neuron exists."""
    images = torch.empty(x.shape[1], *shape, dtype=x.dtype, memory_format=torch.channels_last)
    _move(images, row_of_cell, x, to_rows=False)
    return images


def _move(images: Tensor, row_of_cell: NDArray[np.int32], rows: Tensor, *, to_rows: bool) -> None:
    if len(images):
        job = _Move(
            row_of_cell=address(row_of_cell),
            dense=images.data_ptr(),
            rows=rows.data_ptr(),
            cells=len(row_of_cell),
            batch=len(images),
            to_rows=to_rows,
        )
        loaded().dcn_run_move(ctypes.byref(job), torch.get_num_threads())


def run_maxima(windows: Windows, x: Tensor, out: Tensor) -> None:
    """Rows (rows, N) -> the rows of their max-pool, which ``out`` takes."""
    if out.numel():
        job = _Maxima(
            x=x.data_ptr(),
            out=out.data_ptr(),
            reads=address(windows.reads),
            read_start=address(windows.read_start),
            with_zero=address(windows.with_zero),
            rows=len(out),
            batch=x.shape[1],
        )
        loaded().dcn_run_maxima(ctypes.byref(job), torch.get_num_threads())
