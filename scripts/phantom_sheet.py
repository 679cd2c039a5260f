"""Draws a contact sheet of PhantomVQA: `python scripts/phantom_sheet.py --out=/tmp/sheet.png --split=val`.

A row an item: native image at its default window, the overview as the model receives it, the views after the minimal chain
(for controls none), then question, options, answer and certificate. `--families=radiograph,fundus` draws items of PhantomAtlas
instead, for a model with another overview: `--side=2048 --view=448 --resample=bicubic`.
"""

import textwrap

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

from mvg_jax.data.phantom import PhantomSource
from mvg_jax.data.phantom.atlas import PhantomAtlas
from mvg_jax.data.phantom.views import BONE_WINDOW, Overview, grey, sample
from mvg_jax.data.task import Task

OUT = flags.DEFINE_string("out", None, "Image file to write.", required=True)
SPLIT = flags.DEFINE_string("split", "train", "train, val, test, or ood (atlas only).")
FAMILIES = flags.DEFINE_list("families", [], "Families of PhantomAtlas; empty = the CT-like abdomens.")
SIDE = flags.DEFINE_integer("side", 512, "Side of the native images of PhantomAtlas.")
VIEW = flags.DEFINE_integer("view", 64, "Side of a view.")
RESAMPLE = flags.DEFINE_enum("resample", "linear", ["linear", "bicubic"], "How views are resampled.")
PAIRS = flags.DEFINE_integer("pairs", 1, "Pairs of twins per kind.")
COLUMNS = flags.DEFINE_integer("columns", 2, "Items side by side.")

SEARCHED = 2000  # items
TILE, TEXT, GAP = 400, 230, 8


def pictured(planes: np.ndarray, window: tuple[float, float], size: int, smooth: bool) -> Image.Image:
    """Physical values [C, H, W] through a window, as a picture of `size` px a side."""
    pixels = np.rint(grey(planes, window)).astype(np.uint8).transpose(1, 2, 0)
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()).resize((size, size), method)


def view(planes: np.ndarray, box: list[float], window: tuple[float, float], overview: Overview) -> Image.Image:
    """A view of a box (0..1000) as the model gets it, enlarged without smoothing."""
    x1, y1, x2, y2 = (v * overview.side / 1000 for v in box)
    small = sample(planes, overview.weights(y1, y2), overview.weights(x1, x2))
    return pictured(small, window, TILE // 2 - GAP // 2, smooth=False)


def row(task: Task, overview: Overview) -> Image.Image:
    image = task.images[0]
    planes = (image.pixels * image.slope + image.intercept).reshape(overview.side, overview.side, -1).transpose(2, 0, 1)
    whole = [0, 0, 1000, 1000]
    views = [view(planes, whole, image.window, overview)]
    for call in task.chain:
        if call.name == "window_level_tool":
            views.append(view(planes, whole, BONE_WINDOW, overview))
        else:
            at = call.arguments["bbox_2d"]
            views += [view(planes, box, image.window, overview) for box in (at if isinstance(at[0], list) else [at])]
    tile = Image.new("RGB", (2 * TILE + TEXT + 2 * GAP, TILE), (40, 40, 40))
    tile.paste(pictured(planes, image.window, TILE, smooth=True), (0, 0))
    half = TILE // 2 + GAP // 2
    for k, small in enumerate(views):
        tile.paste(small, (TILE + GAP + half * (k % 2), half * (k // 2)))
    proof = ", ".join(
        f"{name[7:]} {task.certificate[name]:.2g}" for name in task.certificate if name.startswith("dprime_")
    )
    lines = [task.id, f"{task.kind}, {task.answer_type}", task.question, f"answer: {task.answer}"]
    if task.options:
        lines.insert(3, "options: " + ", ".join(task.options))
    if proof:
        lines.append(f"d' {proof}")
    text = "\n".join(line for part in lines for line in textwrap.wrap(part, 34))
    ImageDraw.Draw(tile).multiline_text((2 * TILE + 2 * GAP, 4), text, fill=(255, 255, 255), spacing=6)
    return tile


def main(_):
    overview = Overview(SIDE.value, VIEW.value, RESAMPLE.value) if FAMILIES.value else Overview()
    if FAMILIES.value:
        source = PhantomAtlas(SPLIT.value, SEARCHED, families=FAMILIES.value, overview=overview)
    else:
        source = PhantomSource(SPLIT.value, SEARCHED)
    found: dict[tuple[str, str], list[Image.Image]] = {}
    last = 0
    for pair in range(len(source) // 2):
        if pair - last > 100:  # nothing new for long
            break
        first = source[2 * pair]
        rows = found.setdefault((first.modality, first.kind), [])
        if len(rows) < 2 * PAIRS.value:
            last = pair
            rows += [row(first, overview), row(source[2 * pair + 1], overview)]
    rows = [tile for key in sorted(found) for tile in found[key]]
    width, height = rows[0].size
    n = COLUMNS.value
    sheet = Image.new("RGB", (n * (width + GAP), -(-len(rows) // n) * (height + GAP)), (90, 90, 90))
    for k, tile in enumerate(rows):
        sheet.paste(tile, ((k % n) * (width + GAP), (k // n) * (height + GAP)))
    sheet.save(OUT.value)


if __name__ == "__main__":
    app.run(main)
