"""PNG plots of records, drawn without a display."""

from dcn_plugin.report.plots.distances import distance_png
from dcn_plugin.report.plots.images import AMPLIFIED, ImageGrid, examples_png, grid_png
from dcn_plugin.report.plots.matrix import heatmap_png
from dcn_plugin.report.plots.rates import Rate, rate_cells, rate_of, rate_png
from dcn_plugin.report.plots.speed import speed_png
from dcn_plugin.report.plots.trade_off import trade_off_png

__all__ = [
    "AMPLIFIED",
    "ImageGrid",
    "Rate",
    "distance_png",
    "examples_png",
    "grid_png",
    "heatmap_png",
    "rate_cells",
    "rate_of",
    "rate_png",
    "speed_png",
    "trade_off_png",
]
