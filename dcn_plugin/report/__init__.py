"""Records made readable: tables, plots, words, and one self-contained page."""

from dcn_plugin.report.build import Report, write_report
from dcn_plugin.report.findings import findings
from dcn_plugin.report.groups import Cell, cells, clean_cells, percent
from dcn_plugin.report.html import Figure, render_html
from dcn_plugin.report.plots import examples_png, rate_png
from dcn_plugin.report.tables import Table, records_csv, result_tables

__all__ = [
    "Cell",
    "Figure",
    "Report",
    "Table",
    "cells",
    "clean_cells",
    "examples_png",
    "findings",
    "percent",
    "rate_png",
    "records_csv",
    "render_html",
    "result_tables",
    "write_report",
]
