"""adv-lib (adversarial-library): its minimum-norm attacks run as ours, for every evaluator.

- :class:`MinimumNorm` runs one of DDN, ALMA, PDGD, FMN and APGD as a :class:`dcn_plugin.attacks.Attack`.
- :func:`minimum_norm_attacks` is the set of those that minimise a norm, :func:`nearest_of_all` the best of them, image
  by image.

Needs ``pip install "dcn-plugin[minimum-norm]"``. adv-lib imports visdom for a logger that is not used here; visdom
comes as source and builds with setuptools below 81 only: put ``setuptools<81`` into a file and name that in
``PIP_CONSTRAINT``.
"""

from __future__ import annotations

import importlib
import warnings

from dcn_plugin.errors import MissingExtraError

try:
    with warnings.catch_warnings():
        # It asks distutils for torch's version, which Python 3.11 deprecates and later ones take from setuptools.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("adv_lib.attacks")
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "adv-lib is not installed, or not all that it needs.",
        error.name,
        fix="echo 'setuptools<81' > build.txt; PIP_CONSTRAINT=build.txt pip install \"dcn-plugin[minimum-norm]\"",
    ) from error

from dcn_plugin.adapters._adv_lib_runner import MinimumNorm, minimum_norm_attacks, nearest_of_all

__all__ = ["MinimumNorm", "minimum_norm_attacks", "nearest_of_all"]
