"""The optional C kernel; everything else is in pyproject.toml."""

from setuptools import Extension, setup

# No Python in it: it is loaded through ctypes. Where it cannot be compiled the package works without it.
setup(
    ext_modules=[
        Extension(
            "dcn_plugin.engine._kernel",
            sources=["dcn_plugin/engine/kernel.c", "dcn_plugin/engine/training.c"],
            depends=["dcn_plugin/engine/parallel.h"],
            extra_compile_args=["-O3"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
