"""The pictures of a report: figures of its scores, and a sheet of the images scored."""

from __future__ import annotations

import io
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cftjax import figures
from cftjax.report import page
from cftjax.report.contents import AFTER, BEFORE, Results
from cftjax.scores import reliability
from cftjax.scores.measure import Measured

NUM_IMAGES = 24
# A figure of more is embedded as pixels: thousands of lines would make the page slow.
SVG_BYTES = 400_000


def drawn(results: Results, measured: Measured) -> dict[str, Figure]:
    """File name without suffix -> figure, in the order in which the page shows them."""
    split, metric, embeddings = results.reported, results.metric, results.embeddings[results.reported]
    before, after = (measured.scores[place] for place in (BEFORE, AFTER))
    kind = "sigmoid" if results.decisions is None else "calibrated"
    bins = {"backbone, sigmoid": before.bins, f"final, {kind}": after.bins}
    history = results.history
    pictures = {
        "before_after": figures.before_after(
            results.categories, before.each[metric], after.each[metric], metric=metric, split=split
        ),
        "reliability": figures.reliability(bins, split=split),
        "search_history": figures.search_history(
            results.categories, history["generation"], history["score"], metric=metric
        ),
    }
    if results.records is not None and len(embeddings.unopened) < len(results.records):
        pictures[f"{split}_images"] = sheet_of_images(results)
    return pictures


def sheet_of_images(results: Results) -> Figure:
    """A random few images, each with what is true of it and what the final heads say."""
    records, embeddings = results.records, results.embeddings[results.reported]
    assert records is not None
    # A run that left an image out must not fail at it here.
    rows = np.arange(len(records))
    if embeddings.unopened:
        rows = rows[~np.isin(np.array(records.names, str), list(embeddings.unopened))]
    rows = np.sort(np.random.default_rng(0).choice(rows, min(NUM_IMAGES, len(rows)), replace=False))
    images = [records.image(row) for row in rows.tolist()]
    z, labels, known = (np.asarray(x[rows]) for x in (embeddings.z, embeddings.labels, embeddings.known))
    raw = np.asarray(results.heads["final"](z))
    if results.reported == "validation" and "final" in results.out_of_fold:
        raw = results.out_of_fold["final"][rows]
    decisions = results.decisions
    probs = reliability.probabilities(raw) if decisions is None else decisions.probabilities(raw)
    labels, known = labels.astype(bool), known.astype(bool)
    split, calibrated = results.reported, decisions is not None
    return figures.image_sheet(images, results.categories, probs, labels, known, split=split, calibrated=calibrated)


def content_of(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "cftjax"}), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes; the page's table has it.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def embedded(name: str, figure: Figure, png: bytes) -> page.Figure:
    """A figure as the page shows it: sharp at any size where that is small, photographs as JPEG."""
    if name.endswith("images"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "JPEG", quality=85)
        return page.Figure("images", buffer.getvalue(), "image/jpeg", figure.get_figwidth())
    svg = content_of(figure, "svg")
    content, kind = (svg, "image/svg+xml") if len(svg) < SVG_BYTES else (png, "image/png")
    return page.Figure(name, content, kind, figure.get_figwidth())
