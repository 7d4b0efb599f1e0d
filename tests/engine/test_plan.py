from __future__ import annotations

from dataclasses import replace

from dcn_plugin.engine import LayerPlan, Plan


def layer(
    name: str, *, backend: str = "c", dense: int = 4_000_000, live: int = 1_000_000, timed: bool = True
) -> LayerPlan:
    return LayerPlan(
        name=name,
        shape=(8, 16, 12),
        dense=dense,
        live=live,
        packed_bytes=3 * 2**20 if backend != "dense" else 0,
        dense_ms=2.5 if timed else None,
        rows_ms=0.75 if timed else None,
        backend=backend,
        reason="skips dead neurons" if backend != "dense" else "nothing to skip",
    )


def plan(*layers: LayerPlan, note: str = "", timed: bool = True) -> Plan:
    return Plan(
        layers=layers,
        backend="c",
        batch_size=64,
        dense_ms=6.0 if timed else None,
        compact_ms=4.0 if timed else None,
        least_batch=4,
        note=note,
    )


def test_the_table_has_a_line_for_every_layer_under_its_heads() -> None:
    head, *lines = str(plan(layer("stem.conv"), layer("head", backend="dense"))).splitlines()
    assert head.split("  ")[0] == "layer"
    assert [word for word in lines[0].split() if word] == (
        ["stem.conv", "8x16x12", "4.00", "1.00", "0.250", "3072", "2.500", "0.750", "c", "skips", "dead", "neurons"]
    )
    assert lines[1].split()[:2] == ["head", "8x16x12"]
    assert lines[1].endswith("dense    nothing to skip")
    # Columns are aligned: what is right of the widest name starts at the same place.
    assert head.index("output") == lines[0].index("8x16x12") == lines[1].index("8x16x12")
    assert head.index("why") == lines[0].index("skips") == lines[1].index("nothing")


def test_what_was_not_measured_shows_as_a_dash() -> None:
    text = str(plan(layer("stem", timed=False), timed=False))
    assert text.splitlines()[1].split()[6:8] == ["-", "-"]
    assert "measured" not in text


def test_the_summary_says_backend_batch_memory_times_and_note() -> None:
    text = str(plan(layer("a"), layer("b"), note="Something else."))
    assert "backend c, batch 64; smaller batches than 4 run on images" in text
    assert "lists of rows: 6.0 MiB" in text
    assert "6.00 ms the model as it is, 4.00 ms compact: 1.50x" in text
    assert text.endswith("\nSomething else.")


def test_packed_bytes_are_those_of_all_layers() -> None:
    assert plan(layer("a"), layer("b", backend="dense"), layer("c")).packed_bytes == 6 * 2**20


def test_the_ideal_counts_dense_layers_whole_and_the_others_by_what_lives() -> None:
    assert plan(layer("a"), layer("b", backend="dense")).ideal == 8 / 5
    assert plan(layer("a")).ideal == 4


def test_a_plan_in_which_nothing_lives_has_an_ideal_all_the_same() -> None:
    assert plan(layer("a", live=0)).ideal == 4_000_000


def test_a_plan_says_how_batches_of_each_size_run() -> None:
    made = replace(plan(layer("a")), ways=((1, "model"), (3, "images"), (9, "compact")))
    assert [made.way(count) for count in (0, 1, 2, 3, 8, 9, 64, 1000)] == (
        ["model"] * 3 + ["images"] * 2 + ["compact"] * 3
    )
    assert "batches run as the model is from 1 on, on images from 3 on, as planned from 9 on" in str(made)
    assert [plan(layer("a")).way(count) for count in (0, 3, 4)] == ["images", "images", "compact"]
