"""Draws a contact sheet of PhantomVQA: `python scripts/phantom_sheet.py --out=/tmp/sheet.png --split=val`.

A row an item: native image at its default window, the overview as the tiny model receives it, the views after the
minimal chain (for controls none), then question, options, answer and certificate.
"""

import textwrap

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

from mvg_jax.data.phantom import KINDS, PhantomSource
from mvg_jax.data.phantom.views import BONE_WINDOW, VIEW, grey, sample, weights

OUT = flags.DEFINE_string("out", None, "Image file to write.", required=True)
SPLIT = flags.DEFINE_string("split", "train", "train, val or test.")
PAIRS = flags.DEFINE_integer("pairs", 1, "Pairs of twins per kind.")
COLUMNS = flags.DEFINE_integer("columns", 2, "Items side by side.")

TILE, TEXT, GAP = 400, 230, 8


def view(hu: np.ndarray, box: list[float], window: tuple[float, float]) -> Image.Image:
    """A view of a box (0..1000) as the model gets it, enlarged without smoothing."""
    side = hu.shape[0] / 1000
    x1, y1, x2, y2 = (v * side for v in box)
    small = grey(sample(hu, weights(hu.shape[0], y1, y2, VIEW), weights(hu.shape[1], x1, x2, VIEW)), window)
    shown = Image.fromarray(np.rint(small).astype(np.uint8))
    return shown.resize((TILE // 2 - GAP // 2,) * 2, Image.Resampling.NEAREST)


def row(task) -> Image.Image:
    image = task.images[0]
    hu = image.pixels * image.slope + image.intercept
    whole = [0, 0, 1000, 1000]
    views = [view(hu, whole, image.window)]
    for call in task.chain:
        if call.name == "window_level_tool":
            views.append(view(hu, whole, BONE_WINDOW))
        else:
            at = call.arguments["bbox_2d"]
            views += [view(hu, box, image.window) for box in (at if isinstance(at[0], list) else [at])]
    tile = Image.new("L", (2 * TILE + TEXT + 2 * GAP, TILE), 40)
    native = Image.fromarray(np.rint(grey(hu, image.window)).astype(np.uint8))
    tile.paste(native.crop((0, 0, 512, 512)).resize((TILE, TILE), Image.Resampling.LANCZOS), (0, 0))
    half = TILE // 2 + GAP // 2
    for k, small in enumerate(views):
        tile.paste(small, (TILE + GAP + half * (k % 2), half * (k // 2)))
    proof = ", ".join(f"{name[7:]} {value:.2g}" for name, value in task.certificate.items())
    options = "options: " + ", ".join(task.options)
    lines = [task.id, task.kind, task.question, options, "answer: " + task.answer]
    if proof:
        lines.append(f"d' {proof}")
    text = "\n".join(line for part in lines for line in textwrap.wrap(part, 34))
    ImageDraw.Draw(tile).multiline_text((2 * TILE + 2 * GAP, 4), text, fill=255, spacing=6)
    return tile


def main(_):
    source = PhantomSource(SPLIT.value, 2000)
    found = {kind: [] for kind in KINDS}
    for pair in range(len(source) // 2):
        if all(len(rows) >= 2 * PAIRS.value for rows in found.values()):
            break
        first = source[2 * pair]
        if len(found[first.kind]) < 2 * PAIRS.value:
            found[first.kind] += [row(first), row(source[2 * pair + 1])]
    rows = [tile for tiles in found.values() for tile in tiles]
    width, height = rows[0].size
    n = COLUMNS.value
    sheet = Image.new("L", (n * (width + GAP), -(-len(rows) // n) * (height + GAP)), 90)
    for k, tile in enumerate(rows):
        sheet.paste(tile, ((k % n) * (width + GAP), (k // n) * (height + GAP)))
    sheet.save(OUT.value)


if __name__ == "__main__":
    app.run(main)
