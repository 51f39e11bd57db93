"""The report's figures: each function takes arrays and returns a matplotlib Figure of its own, to save or to show.

No window and no global state. What a colour says, a shape or a sign says as well. Scores are shown in %, as the field
prints them.
"""

from cftjax.figures.calibration import reliability
from cftjax.figures.evaluation import precision_recall_and_roc, score_intervals
from cftjax.figures.heatmaps import heatmaps
from cftjax.figures.images import image_sheet
from cftjax.figures.labels import label_counts
from cftjax.figures.scores import before_after
from cftjax.figures.search import search_history
from cftjax.figures.sweep import over_modes, over_proportions

__all__ = [
    "before_after",
    "heatmaps",
    "image_sheet",
    "label_counts",
    "over_modes",
    "over_proportions",
    "precision_recall_and_roc",
    "reliability",
    "score_intervals",
    "search_history",
]
