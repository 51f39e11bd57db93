"""Names that nobody should obey, from end to end: for `benchmarks/attack.py --names`.

A table of images whose categories and files have names with terminal escapes, HTML, Markdown, formulas, thousands of
letters, letters from right to left, stacked accents and line ends goes through train, evaluate, predict, export, verify
and finetune. Then is looked at what a terminal, a spreadsheet, a browser and a reader of the card are given.
"""

from __future__ import annotations

import csv
import html
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from PIL import Image

from cftjax.runtime import storage
from cftjax.text import from_spreadsheet

# What a script that runs leaves behind, in whichever way it comes to run.
MARK = "document.documentElement.dataset.owned=1"
CATEGORIES = (
    "\x1b[2J\x1b]0;owned\x07red \x1b[31m",
    "\x9b31mone byte",
    f"<script>{MARK}</script>",
    f"</title></style></textarea><script>{MARK}</script>",
    f"\"><img src=x onerror='{MARK}'>",
    f"' onmouseover='{MARK}' autofocus onfocus='{MARK}",
    f"[link](javascript:{MARK})",
    f'![image](x" onerror="{MARK})',
    "| cell | **bold** `code` ~~gone~~ # head",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "=1+1",
    '=HYPERLINK("http://localhost/","x")',
    "+cmd|' /C calc'!A0",
    "-1+1",
    "@SUM(A1)",
    "'=1+1",
    "very " * 2000 + "long",
    "\u202edesrever\u202c \u05d0\u05d1\u05d2 \u0627\u0644\u0639",
    "zalgo " + "a" + "\u0301\u0316" * 60,
    "two\nlines\r\nand\ta tab",
    "a\u2028separator\u2029of lines",
    "$\\frac{1}{0}$ and $x",
    "$\\undefined{",
    "{0} %s %(x)d {{7*7}} ${HOME} $title",
    "../../up/and/away",
    "C:\\new\\table",
    "\ufeffmark of bytes",
    "zero\u200bwidth",
    "\U0001f9d1\u200d\U0001f52c emoji",
)
# Of files; a slash cannot be in one, and 255 bytes are the most.
FILES = (
    "\x1b[31mred\x1b]0;owned\x07.png",
    f"<img src=x onerror='{MARK}'>.png",
    f"<script>{MARK}<\u2215script>.png",
    "=1+1.png",
    "+1.png",
    "@SUM(A1).png",
    "[link](javascript:x).png",
    "$\\frac{1}{0}$.png",
    "two\nlines.png",
    "\u202egnp.exe.png",
    "a" + "\u0301" * 100 + ".png",
    "l" * 250 + ".png",
    " spaces and 'quotes\".png",
    "%s {0} -o.png",
    "-o.png",
)
PER_SPLIT = 3 * len(FILES)
TUNING = {
    "--ga.num-generations": 20,
    "--ga.population-size": 8,
    "--polish.num-steps": 20,
    "--report.resamples": 20,
}
TRAINING = {
    "--backbone.name": "small_resnet",
    "--data.image-size": 32,
    "--training.max-steps": 4,
    "--training.batch-size": 16,
    "--embed.batch-size": 16,
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A cell that a spreadsheet takes for a formula; a number is none.
FORMULA = re.compile(r"[=+\-@\t\r\n]")


def attack_names(folder: Path) -> int:
    """Send hostile names through every command; how much was wrong."""
    table, images = write_data(folder)
    run, said = folder / "run", {}
    train = ["train", "csv", "--data.file", str(table), "--workdir", str(run), *options(TRAINING | TUNING)]
    said["train"] = run_to_end(train)
    heat = ["--heatmaps", str(folder / "heatmaps"), "--heatmaps-at-most", "2"]
    said["predict"] = run_to_end(["predict", str(run), str(images), "-o", str(folder / "predicted.csv"), *heat])
    said["evaluate"] = run_to_end(["evaluate", str(run), "-o", str(folder / "evaluated"), "--resamples", "20"])
    said["export"] = run_to_end(["export", str(run), "-o", str(folder / "exported"), "--format", "safetensors"])
    said["verify"] = run_to_end(["verify", str(run)])
    bundle, tuned = write_bundle(folder), folder / "tuned"
    said["finetune"] = run_to_end(["finetune", str(bundle), "-o", str(tuned), *options(TUNING)])
    said["data summary"] = run_to_end(["data", "summary", "csv", "--data.file", str(table)])
    said["a terminal"] = (0, on_a_terminal(["evaluate", str(run), "--resamples", "20"]))
    found = [f"{name} ended with {code}: {words[-800:]!r}" for name, (code, words) in said.items() if code]
    found += [f"{name}: {wrong}" for name, (_, words) in said.items() for wrong in escapes(words)]
    for own in (run, tuned):
        found += [f"{own.name}: {wrong}" for wrong in of_run(own)]
    found += sheets([*folder.rglob("*.csv")], table)
    found += of_browser([*pages(folder)])
    print(
        f"hostile names: {len(CATEGORIES)} of categories and {len(FILES)} of files through {len(said)} commands, "
        f"{len([*folder.rglob('*.csv')]) - 1} tables, {len([*pages(folder)])} pages; wrong: {len(found)}"
    )
    print("\n".join(found), flush=True)
    return len(found)


def options(given: Mapping[str, object]) -> list[str]:
    """As words of a command."""
    return ["--log", "tensorboard", *(str(word) for pair in given.items() for word in pair)]


def write_data(folder: Path) -> tuple[Path, Path]:
    """Images with hostile file names, and the table that labels them."""
    images, rng = folder / "images", np.random.default_rng(0)
    rows = []
    for split in ("train", "validation", "test"):
        (images / split).mkdir(parents=True)
        for i in range(PER_SPLIT):
            name = FILES[i % len(FILES)] if i < len(FILES) else f"{i}.png"
            labels = rng.integers(0, 2, len(CATEGORIES))
            labels[0] = i % 2
            pixels = rng.integers(0, 100, (32, 32, 3)) + 100 * labels[0]
            Image.fromarray(pixels.astype(np.uint8)).save(images / split / name)
            rows.append([f"{split}/{name}", split, *labels.tolist()])
    with (images / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "split", *CATEGORIES], *rows])
    return images / "labels.csv", images / "test"


def write_bundle(folder: Path) -> Path:
    """Embeddings of categories with the same names."""
    rng, c = np.random.default_rng(0), len(CATEGORIES)
    arrays: dict[str, Any] = {"categories": np.array(CATEGORIES)}
    arrays |= {"kernel": rng.normal(size=(c, 4)), "bias": np.zeros(c)}
    for split in ("train", "validation", "test"):
        arrays[f"{split}_z"] = rng.normal(size=(40, 4)).astype(np.float32)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (40, c)).astype(np.float32)
    np.savez(folder / "bundle.npz", **arrays)
    return folder / "bundle.npz"


def run_to_end(words: Sequence[str]) -> tuple[int, str]:
    """A command without a terminal: exit code, and what it said."""
    call = [sys.executable, "-m", "cftjax", *words]
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout.decode(errors="surrogateescape")


def on_a_terminal(words: Sequence[str]) -> str:
    """What a command says to a terminal, without the escapes that colour and bars take."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "cftjax", *words], stdout=follower, stderr=follower)
    os.close(follower)
    said = b""
    while select.select([leader], [], [], 300)[0]:
        try:
            said += os.read(leader, 65536)
        except OSError:  # as Linux says that the other end is closed
            break
    process.wait()
    text = said.decode(errors="surrogateescape")
    # What a program of ours may ask of a terminal: colour, a line cleared, the cursor hidden or moved up.
    return re.sub(r"\x1b\[[0-9;]*[mKA]|\x1b\[\?25[lh]|\r", "", text)


def escapes(text: str) -> Iterator[str]:
    """Characters that a terminal, or a reader of lines, acts on."""
    for found in re.finditer(r"[^\n\t -~\u00a0-\U0010ffff]|[\u202a-\u202e\u2028\u2029\ufeff]", text):
        yield f"{found.group()!r} in {text[max(found.start() - 40, 0) : found.end() + 20]!r}"


def of_run(run: Path) -> Iterator[str]:
    """What is wrong in a run's files: names that are not what was given, or that do something."""
    named = storage.read_json(run / "config.json")["categories"]
    if named != list(CATEGORIES):
        yield f"config.json names {set(named) ^ set(CATEGORIES)}"
    for file in (run / "report" / "table.txt", run / "README.md"):
        yield from (f"{file.name}: {wrong}" for wrong in escapes(file.read_text(encoding="utf-8", errors="replace")))
    for name in ("before_after.png", "search_history.png", "reliability.png"):
        Image.open(run / "report" / name).verify()
    for log in run.rglob("tensorboard/*"):
        tags = {tag for tag in tags_of(log) if "_by_category/" in tag}
        wanted = {f"{tag.split('/')[0]}/{tag.split('/')[1]}/{name}" for tag in tags for name in CATEGORIES}
        if tags and tags != wanted:
            yield f"{log.parent.parent.name}: TensorBoard's curves are {len(tags)}, not those of the categories"


def tags_of(log: Path) -> Iterator[str]:
    """Names of the curves in a log of TensorBoard."""
    from tensorboardX.proto import event_pb2  # an extra

    events: Any = event_pb2  # made at run time
    content, start = log.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        event = events.Event.FromString(content[start + 12 : start + 12 + length])
        yield from (value.tag for value in event.summary.value)
        start += 16 + length


def sheets(files: Sequence[Path], given: Path) -> Iterator[str]:
    """Cells that a spreadsheet would calculate, and names that do not come back."""
    for file in files:
        if file == given:
            continue
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.reader(opened))
        for cell in {cell for row in rows for cell in row if FORMULA.match(cell)}:
            if not number(cell):
                yield f"{file.name}: the cell {cell[:60]!r} is a formula"
        if file.name in ("predicted.csv", "table.csv"):
            cells = {from_spreadsheet(cell) for row in (rows if file.name == "table.csv" else rows[:1]) for cell in row}
            lost = [name for name in CATEGORIES if not any(name in cell for cell in cells)]
            if lost:
                yield f"{file.name} does not name {[name[:40] for name in lost]!r}"


def number(cell: str) -> bool:
    """Whether a cell holds nothing but a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def pages(folder: Path) -> Iterator[Path]:
    """Everything that a browser may be shown: reports, cards as HTML, vector pictures."""
    yield from folder.rglob("index.html")
    yield from folder.rglob("*.svg")
    for card in folder.rglob("README.md"):
        # As permissive as any: HTML in Markdown stays HTML.
        rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.read_text(encoding="utf-8"))
        page = card.with_suffix(".card.html")
        page.write_text(f"<!doctype html><meta charset=utf-8>{rendered}", encoding="utf-8")
        yield page


def of_browser(files: Sequence[Path]) -> Iterator[str]:
    """Pages in which a script ran that came in a name, or elements were made of one."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        yield f"no browser is there to show {len(files)} pages: install one of {', '.join(BROWSERS)}"
        return
    with tempfile.TemporaryDirectory() as temporary:
        control = Path(temporary) / "control.html"
        control.write_text(f"<!doctype html><img src=x onerror='{MARK}'>")
        if "data-owned" not in shown(browser, control):
            yield "the browser does not run the script of a page made for it: nothing was tested"
    for file in files:
        content = shown(browser, file)
        root = re.search(r"<html[^>]*>|<svg[^>]*>", content)
        if root is None or not content.strip():
            yield f"{file.name} was not shown: {content[:200]!r}"
        elif "data-owned" in root.group():
            yield f"{file}: a script in a name ran"
        elif strange := [tag for tag in re.findall(r"<[^>]*>", content) if MARK in strip_values(tag)]:
            yield f"{file}: a name became {html.escape(strange[0])[:200]!r}"


def strip_values(tag: str) -> str:
    """A tag without the values of titles and descriptions, which may say anything."""
    return re.sub(r'\b(title|alt|aria-label|src)="[^"]*"', "", tag)


def shown(browser: str, file: Path) -> str:
    """The document as it stands once scripts have run and every control has been looked at, as HTML."""
    call = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=4000"]
    call.append(f"--user-data-dir={file.parent / '.browser'}")
    try:
        done = subprocess.run([*call, file.absolute().as_uri()], capture_output=True, timeout=120)
    finally:
        shutil.rmtree(file.parent / ".browser", ignore_errors=True)
    return done.stdout.decode(errors="replace")
