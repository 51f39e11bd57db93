"""The report as one page of HTML: no network, no other file, and whatever names and settings hold is escaped.

Made from the contents of metrics.json, with figures, thumbnails and settings embedded. The page's frame, its style and
its few lines of script are in page.html.
"""

from cftjax.report.page.render import Figure, render
from cftjax.report.page.settings import Setting, of_config

__all__ = ["Figure", "Setting", "of_config", "render"]
