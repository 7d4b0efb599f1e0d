"""Tables of records that belong to no protocol, and what all tables share."""

from dcn_plugin.report.tables.clean import clean_table
from dcn_plugin.report.tables.csv_rows import records_csv
from dcn_plugin.report.tables.speed import speed_table

__all__ = ["clean_table", "records_csv", "speed_table"]
