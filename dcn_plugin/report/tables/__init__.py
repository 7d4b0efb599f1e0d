"""Tables of records, a file a family of protocols."""

from dcn_plugin.report.tables.clean import clean_table
from dcn_plugin.report.tables.csv_rows import records_csv
from dcn_plugin.report.tables.families import Family, families, result_tables
from dcn_plugin.report.tables.speed import speed_table
from dcn_plugin.support.table import LATEX_PREAMBLE, Table, latex_document

__all__ = [
    "LATEX_PREAMBLE",
    "Family",
    "Table",
    "clean_table",
    "families",
    "latex_document",
    "records_csv",
    "result_tables",
    "speed_table",
]
