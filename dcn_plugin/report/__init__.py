"""Records made readable: tables, plots, words, and one self-contained page."""

from dcn_plugin.report.aggregate import Cell, Matrix, cells, clean_cells
from dcn_plugin.report.conclusions import findings
from dcn_plugin.report.html import Figure, Section, render_html
from dcn_plugin.report.image_grids import adversarial_grids
from dcn_plugin.report.load import load_run
from dcn_plugin.report.pages import Report, result_tables, write_report
from dcn_plugin.report.plots import ImageGrid, distance_png, examples_png, grid_png, heatmap_png, rate_png, speed_png
from dcn_plugin.report.protocols.transfer import matrices
from dcn_plugin.report.tables import records_csv, speed_table
from dcn_plugin.report.warnings_for import cautions
from dcn_plugin.support.number_format import percent
from dcn_plugin.support.old_paths import keep_old_paths
from dcn_plugin.support.table import LATEX_PREAMBLE, Table, latex_document

__all__ = [
    "LATEX_PREAMBLE",
    "Cell",
    "Figure",
    "ImageGrid",
    "Matrix",
    "Report",
    "Section",
    "Table",
    "adversarial_grids",
    "cautions",
    "cells",
    "clean_cells",
    "distance_png",
    "examples_png",
    "findings",
    "grid_png",
    "heatmap_png",
    "latex_document",
    "load_run",
    "matrices",
    "percent",
    "rate_png",
    "records_csv",
    "render_html",
    "result_tables",
    "speed_png",
    "speed_table",
    "write_report",
]

keep_old_paths(__name__, cautions="dcn_plugin.report.warnings_for", findings="dcn_plugin.report.conclusions")
keep_old_paths("dcn_plugin.report.tables", table="dcn_plugin.support.table")
