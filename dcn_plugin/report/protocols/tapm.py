"""The report of TAPM: the worst of all sources and attacks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.tapm import PROTOCOL
from dcn_plugin.report.aggregate import Cell, cells_of
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import RELATIONS, ROBUST, Column, context_of, numeric, rate_table
from dcn_plugin.support.number_format import DASH, listed, number, percent
from dcn_plugin.support.table import Table

__all__ = ["PART"]


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = cells_of(results, PROTOCOL)
    settings = [run.attack_settings for cell in rows for run in cell.runs]
    sources, attacks = (
        dict.fromkeys(str(setting[key]) for setting in settings if key in setting) for key in ("sources", "attacks")
    )
    names = [attack.partition("(")[0] for attack in "; ".join(attacks).split("; ")]
    brief = len(set(names)) == len(names)

    def worst(cell: Cell) -> str:
        attacks = dict.fromkeys(str(run.figures.get("worst_single") or DASH) for run in cell.runs)
        # The settings stand in the note; they are repeated only where the name alone would not do.
        texts = [re.sub(r"\(.*\)$", "", text, flags=re.DOTALL) if brief else _tidy(text) for text in attacks]
        return " or ".join(dict.fromkeys(texts))

    strength = "eps" if any(cell.eps is not None for cell in rows) else None
    columns = [
        *context_of(rows, strength=strength, relation="closest source is"),
        *ROBUST,
        numeric("worst single", lambda cell: percent(cell.figure("worst_single_accuracy"))),
        Column("its source and attack", worst),
    ]
    return [
        rate_table(
            "Worst of all transfer attacks (TAPM)",
            rows,
            columns,
            "Robust accuracy: of all images, the share that is right when clean and under every source and attack. "
            "Worst single: the accuracy under the one source and attack that is worst as a whole.",
            f"Sources: {listed(sources, most=3)}." if sources else "",
            f"Attacks: {_tidy(listed(attacks, most=3))}." if attacks else "",
            RELATIONS if any(cell.relation for cell in rows) else "",
        )
    ]


def _tidy(text: str) -> str:
    """The same text with its long decimals as :func:`number` writes them."""
    return re.sub(r"\b\d+\.\d{5,}(e-?\d+)?", lambda match: number(float(match[0])), text)


PART = ReportPart(
    protocol=PROTOCOL,
    heading="TAPM",
    tables=_tables,
    subject=lambda _: "Worst of all transfer attacks",
    strength=lambda _: "eps",
)
