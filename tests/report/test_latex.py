from __future__ import annotations

import re

import pytest

from dcn_plugin.errors import SpecError
from dcn_plugin.report import LATEX_PREAMBLE, Table, latex_document


def test_a_table_is_booktabs_with_its_columns_aligned() -> None:
    lines = Table("T", ("name", "n"), (("a", "1"),), "note").to_latex().splitlines()
    assert lines == [
        r"\begin{table}",
        r"\centering",
        r"\caption{T}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name & n \\",
        r"\midrule",
        r"a & 1 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip{\footnotesize note}",
        r"\end{table}",
    ]


def test_every_special_character_is_escaped_once() -> None:
    (row,) = re.findall(r"midrule\n(.*) & 1", Table("T", ("a", "b"), ((r"\&%$#_{}~^<>|±–", "1"),)).to_latex())
    assert row == (
        r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}$\pm$--"
    )


def test_a_table_longer_than_a_page_breaks_across_pages() -> None:
    text = Table("T", ("a", "b"), tuple((str(i), "1") for i in range(60)), "note").to_latex()
    assert text.startswith(r"\begin{longtable}{lr}")
    assert text.count(r"a & b \\") == 2  # the first page's head and that of the others
    assert r"\begin{table}" not in text


def test_the_document_says_what_it_needs() -> None:
    text = latex_document([Table("T", ("a",), (("1",),)), Table("U", ("a",), (("2",),))])
    assert text.startswith(LATEX_PREAMBLE)
    assert text.count(r"\toprule") == 2


def test_rows_that_do_not_fit_their_headers_are_refused() -> None:
    with pytest.raises(SpecError, match="do not fit"):
        Table("T", ("a", "b"), (("1",),))
