from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import ExampleRow, Examples


def examples() -> Examples:
    images = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4)
    rows = tuple(
        ExampleRow(title, images, {"source": np.array([1, k]), "p=0.1 / ü": np.array([k, 2])})
        for k, title in enumerate(("clean", "eps 0.2"))
    )
    return Examples("The first two.", np.array([1, 2]), rows, {"stem\nchannel 0": np.eye(4, dtype=np.bool_)})


def test_examples_survive_the_disk(tmp_path: Path) -> None:
    examples().write(tmp_path / "e.npz")
    again, before = Examples.read(tmp_path / "e.npz"), examples()
    assert again.chosen == before.chosen
    assert np.array_equal(again.labels, before.labels)
    for row, old in zip(again.rows, before.rows, strict=True):
        assert row.title == old.title
        assert np.array_equal(row.images, old.images)
        assert list(row.predictions) == list(old.predictions)
        assert all(np.array_equal(row.predictions[name], old.predictions[name]) for name in old.predictions)
    assert list(again.masks) == list(before.masks)
    assert np.array_equal(again.masks["stem\nchannel 0"], np.eye(4, dtype=np.bool_))


def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    examples().write(path)
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="example images"):
            Examples.read(path)
    np.savez(path, labels=np.zeros(2))
    with pytest.raises(RecordError):
        Examples.read(path)
