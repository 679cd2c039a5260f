"""Stage `vision`: tower and projector learn to see before the decoder asks them anything.

Trained jointly from nothing, vision and decoder sit on a plateau for hundreds of steps: the decoder has no reason to look and
the tower no signal. Linear heads on the very embeddings that the decoder will get give a signal for every token:

    class   segments the token's square on an 8 x 8 grid; across the view, findings must also stand out from the rest
    place   where in the view a finding lies, read at the token that holds its centre (a segmentation alone never needs to
            know which square it looks at, and the decoder then takes long to learn places)
    read    which finding a zoom shows, from the mean of its tokens

Zooms begin close up, where a finding fills the view, and draw back: from afar the first hundreds of steps learn nothing.
The heads are dropped afterwards.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mvg_jax.data.task import LabelledImage
from mvg_jax.frames import Frame, box_from_source, flip, full_frame, rotate, with_window, zoom
from mvg_jax.tools import ViewFormat, render_views, stack_sources

OVERVIEWS = 2  # of an image's views, the first ones show all or much of it
PLACES = 50  # bins along each axis of a view for a finding's centre
MAX_BOXES = 6  # findings of an image that are placed
CELLS = 8  # a token's square is labelled on an 8 x 8 grid
POINT_WEIGHT = 0.2
PLACE_WEIGHT = 0.1  # at 1 the places, whose loss is the larger, keep the classes from being learnt
CLOSE, NEAR, FAR = (
    60.0,
    70.0,
    180.0,
)  # sides of zooms, in 1000ths of the image: from CLOSE to NEAR first, to FAR at last
DRAWN_BACK = 0.6  # share of the steps after which zooms reach to FAR


class VisionState(NamedTuple):
    params: nnx.State
    head: dict[str, dict[str, jax.Array]]
    opt_state: optax.OptState

    def kept(self) -> "VisionState":
        """What a checkpoint holds."""
        return self

    def regained(self, kept: "VisionState") -> "VisionState":
        """What a checkpoint held."""
        return kept


@dataclasses.dataclass(frozen=True, eq=False)
class VisionStage:
    """`views` views of each labelled image of a batch. steps: length of the stage, which the curriculum spans.

    findings: classes of what questions are about. They are small, so that half of a view's weight lies on them. alike: those
    among them that an overview cannot tell apart; there, any will do. draw: (image, rng, index among its views, far) -> a view to
    learn from.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    classes: int
    findings: tuple[int, ...]
    alike: tuple[int, ...]
    views: int
    view: ViewFormat
    image_size: tuple[int, int]
    steps: int
    seed: int
    draw: Callable[[LabelledImage, np.random.Generator, int, float], Frame]

    def start(self, params: nnx.State) -> VisionState:
        wide = nnx.merge(self.graph, params).config.text.hidden_size
        scale = wide**-0.5
        sizes = {"class": CELLS * CELLS * self.classes, "place": 2 * PLACES, "read": self.classes}
        keys = jax.random.split(jax.random.key(self.seed), len(sizes))
        head = {
            name: {"kernel": scale * jax.random.normal(key, (wide, size)), "bias": jnp.zeros(size)}
            for key, (name, size) in zip(keys, sizes.items(), strict=True)
        }
        return VisionState(params, head, self.optimizer.init((self._vision(params)[0], head)))

    def step(self, state: VisionState, number: int, batch: Sequence[LabelledImage]) -> tuple[VisionState, dict]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        scales = [[(x.image.slope, x.image.intercept)] for x in batch]
        sources = stack_sources([[x.image.pixels] for x in batch], scales, *self.image_size)
        progress = min(number / (DRAWN_BACK * self.steps), 1.0)
        frames = [self.draw(x, rng, i, NEAR + progress * (FAR - NEAR)) for x in batch for i in range(self.views)]
        nowhere = np.full((MAX_BOXES, 2), -1.0, np.float32)
        centres = np.stack(
            [
                box_centres(x, frames[p * self.views + i]) if i < OVERVIEWS else nowhere
                for p, x in enumerate(batch)
                for i in range(self.views)
            ]
        )
        frames = jax.tree.map(lambda *leaves: np.stack(leaves), *frames)
        row = np.repeat(np.arange(len(batch), dtype=np.int32), self.views)
        maps = np.zeros((len(batch), *self.image_size), np.uint8)
        for p, x in enumerate(batch):
            maps[p, : x.labels.shape[0], : x.labels.shape[1]] = x.labels
        return self._update(state, jax.device_put(sources), maps, row, frames, centres)

    def _vision(self, params: nnx.State):
        return nnx.split_state(params, lambda path, _: path[0] in ("vision_tower", "multi_modal_projector"), ...)

    @functools.cached_property
    def _update(self):
        return jax.jit(self._update_step, donate_argnums=0)

    def _update_step(self, state: VisionState, sources, maps_PxHxW, row_n, frames_n, centre_nxMx2):
        views = render_views(sources, row_n, frames_n, self.view)
        vision, rest = self._vision(state.params)
        overview_n = jnp.arange(views.shape[0]) % self.views < OVERVIEWS
        config = nnx.merge(self.graph, state.params).config
        grid, wide = config.token_grid, config.text.hidden_size  # of DeepStack, what the decoder gets first

        def loss_of(learned):
            vision, head = learned
            features_nxExD = nnx.merge(self.graph, nnx.merge_state(vision, rest)).encode_images(views)[..., :wide]
            place_loss, place_right = place_terms(head["place"], features_nxExD, centre_nxMx2, grid)
            n, E = features_nxExD.shape[:2]
            logits = _linear(head["class"], features_nxExD).reshape(n, E, CELLS * CELLS, self.classes)
            labels = sample_labels(maps_PxHxW, row_n, frames_n, grid)
            class_loss, metrics = class_terms(logits, labels, overview_n, self.findings, self.alike)
            read_logits = _linear(head["read"], features_nxExD).mean(axis=1)
            read_loss, read_right = read_terms(read_logits, labels, ~overview_n, self.findings)
            metrics |= {"place_within_one_bin": place_right, "read": read_right}
            return class_loss + PLACE_WEIGHT * place_loss + read_loss, metrics

        (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)((vision, state.head))
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, (vision, state.head))
        vision, head = optax.apply_updates((vision, state.head), updates)
        return VisionState(nnx.merge_state(vision, rest), head, opt_state), {"loss": loss} | metrics


def _linear(head: dict[str, jax.Array], x_nxExD: jax.Array) -> jax.Array:
    return x_nxExD @ head["kernel"] + head["bias"][None, None]


def class_terms(
    logits_nxExCxK: jax.Array,
    label_nxExC: jax.Array,
    overview_n: jax.Array,
    findings: tuple[int, ...],
    alike: tuple[int, ...],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of the cells' classes. In each view all classes weigh the same, but findings together half.

    `found`: share of overviews whose cell most like one of `alike` (where there are none, like a finding) is one.
    """
    n, K = len(label_nxExC), logits_nxExCxK.shape[-1]
    logprob = jax.nn.log_softmax(logits_nxExCxK)
    overview = overview_n[:, None, None]
    any_of = lambda classes: jax.nn.logsumexp(logprob[..., jnp.array(classes)], axis=-1)
    is_alike, finding = (jnp.isin(label_nxExC, jnp.array(classes)) for classes in (alike or findings, findings))
    any_alike = any_of(alike or findings)
    picked = jnp.take_along_axis(logprob, label_nxExC[..., None], axis=-1)[..., 0]
    picked = jnp.where(overview & is_alike, any_alike, picked) if alike else picked

    count_nxK = jax.nn.one_hot(label_nxExC, K).sum(axis=(1, 2))
    inverse = 1.0 / jnp.take_along_axis(count_nxK, label_nxExC.reshape(n, -1), axis=1).reshape(label_nxExC.shape)
    share = lambda which: which * inverse / jnp.maximum((which * inverse).sum(axis=(1, 2), keepdims=True), 1e-6)
    class_loss = -(picked * 0.5 * (share(finding) + share(~finding))).sum() / n

    # Where among all cells of its view a finding is: what the decoder's attention will ask.
    where = jax.nn.log_softmax(any_of(findings).reshape(n, -1)).reshape(finding.shape)
    point_loss = -(where * share(finding)).sum() / n

    best_nx1 = any_alike.reshape(n, -1).argmax(axis=-1)[:, None]
    hit_n = jnp.take_along_axis(is_alike.reshape(n, -1), best_nx1, axis=1)[:, 0]
    has_n = is_alike.any(axis=(1, 2)) & overview_n
    return class_loss + POINT_WEIGHT * point_loss, {
        "accuracy": (logits_nxExCxK.argmax(axis=-1) == label_nxExC).mean(),
        "found": (hit_n & has_n).sum() / jnp.maximum(has_n.sum(), 1),
    }


def read_terms(
    logits_nxK: jax.Array, label_nxExC: jax.Array, zoomed_n: jax.Array, findings: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy, share right) of the finding that takes most cells of a zoom, over zooms that show one."""
    count_nxF = (label_nxExC[..., None] == jnp.array(findings)[None, None, None]).sum(axis=(1, 2))
    has_n = (count_nxF.max(axis=-1) > 0) & zoomed_n
    label_n = jnp.array(findings)[count_nxF.argmax(axis=-1)]
    picked_n = jnp.take_along_axis(jax.nn.log_softmax(logits_nxK), label_n[:, None], axis=-1)[:, 0]
    right_n = (logits_nxK.argmax(axis=-1) == label_n) & has_n
    total = jnp.maximum(has_n.sum(), 1)
    return -jnp.where(has_n, picked_n, 0.0).sum() / total, right_n.sum() / total


def place_terms(
    head: dict[str, jax.Array], features_nxExD: jax.Array, centre_nxMx2: jax.Array, grid: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy of both coordinates' bins, share of centres within one bin), over centres inside their view.

    grid: rows and columns of a view's tokens.
    """
    rows, columns = grid
    inside = ((centre_nxMx2 >= 0) & (centre_nxMx2 < 1)).all(axis=-1)
    centre = jnp.clip(centre_nxMx2, 0.0, 0.999)
    column, row = jnp.floor(centre[..., 0] * columns), jnp.floor(centre[..., 1] * rows)
    token_nxM = (row * columns + column).astype(jnp.int32)
    at_nxMxD = jnp.take_along_axis(features_nxExD, token_nxM[..., None], axis=1)
    logits = _linear(head, at_nxMxD).reshape(*token_nxM.shape, 2, PLACES)
    target = jnp.floor(centre * PLACES).astype(jnp.int32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    near = (jnp.abs(logits.argmax(axis=-1) - target) <= 1).all(axis=-1)
    count = jnp.maximum(inside.sum(), 1)
    return -jnp.where(inside[..., None], picked, 0.0).sum() / count, jnp.where(inside, near, False).sum() / count


def box_centres(labelled: LabelledImage, frame: Frame) -> np.ndarray:
    """Centres of an image's boxes in view units, float32 [MAX_BOXES, 2]; -1 where there is none."""
    height, width = labelled.image.pixels.shape[:2]
    centres = np.full((MAX_BOXES, 2), -1.0, np.float32)
    for i, box in enumerate(labelled.boxes[:MAX_BOXES]):
        source = np.array(box.xyxy, np.float32) / 1000 * np.array([width, height, width, height], np.float32)
        x1, y1, x2, y2 = box_from_source(frame, source) / 1000
        centres[i] = (x1 + x2) / 2, (y1 + y2) / 2
    return centres


def draw_view(labelled: LabelledImage, rng: np.random.Generator, index: int, far: float) -> Frame:
    """A view to learn from. 0: the overview. 1: the overview in a bone window, or a large part. Others: zooms, most of them on
    a finding, CLOSE to `far` 1000ths of the image wide."""
    image, boxes = labelled.image, labelled.boxes
    whole = full_frame(*image.pixels.shape[:2], image.window, 0)
    if index == 0:
        return whole
    if index < OVERVIEWS:
        if image.unit == "HU" and rng.random() < 0.3:
            return with_window(whole, -500.0, 1300.0)
        side, (x, y) = rng.uniform(300, 1000), rng.uniform(0, 1000, 2)
        return _turned(zoom(whole, _square(x, y, side)), rng)
    x, y = rng.uniform(150, 850, 2)
    side = rng.uniform(CLOSE, far)
    if boxes and rng.random() < 0.9:
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))].xyxy
        x, y = np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + rng.uniform(-0.25, 0.25, 2) * side
    return _turned(zoom(whole, _square(x, y, side)), rng)


def draw_part(labelled: LabelledImage, rng: np.random.Generator, index: int, far: float) -> Frame:
    """A view to learn from, upright. 0: the overview. 1: a large part. Others: a box of the image with some margin, as a question
    may name it."""
    whole, boxes = full_frame(*labelled.image.pixels.shape[:2], labelled.image.window, 0), labelled.boxes
    if index == 0:
        return whole
    if index < OVERVIEWS or not boxes:
        side, (x, y) = rng.uniform(300, 1000), rng.uniform(0, 1000, 2)
        return zoom(whole, _square(x, y, side))
    x1, y1, x2, y2 = boxes[rng.integers(len(boxes))].xyxy
    width, height = max(x2 - x1, CLOSE / 2), max(y2 - y1, CLOSE / 2)
    left, top, right, bottom = rng.uniform(0.1, 0.4, 4)
    box = [x1 - left * width, y1 - top * height, x2 + right * width, y2 + bottom * height]
    return zoom(whole, np.clip(np.array(box, np.float32), 0, 1000))


def _square(x: float, y: float, side: float) -> np.ndarray:
    """xyxy of the square of this side around (x, y), moved inside 0..1000."""
    left, top = np.clip([x - side / 2, y - side / 2], 0, 1000 - side)
    return np.array([left, top, left + side, top + side], np.float32)


def _turned(view: Frame, rng: np.random.Generator) -> Frame:
    """The view in one of its eight orientations: more places and shapes to learn from one image."""
    view = rotate(view, rng.integers(4))
    return flip(view, 0) if rng.random() < 0.5 else view


def sample_labels(maps_PxHxW: jax.Array, row_n: jax.Array, frames_n: Frame, grid: tuple[int, int]) -> jax.Array:
    """Class at the centre of each cell of each token, by the view's frame: int32 [n, E, CELLS*CELLS].

    grid: rows and columns of a view's E tokens.
    """
    centre_v, centre_u = ((jnp.arange(side * CELLS) + 0.5) / (side * CELLS) for side in grid)
    v, u = jnp.meshgrid(centre_v, centre_u, indexing="ij")
    unit = jnp.stack([u, v, jnp.ones_like(u)], axis=-1)
    xy = jnp.einsum("nij,vuj->nvui", frames_n.affine, unit)
    height, width = maps_PxHxW.shape[1:]
    x = jnp.clip(jnp.floor(xy[..., 0]).astype(jnp.int32), 0, width - 1)
    y = jnp.clip(jnp.floor(xy[..., 1]).astype(jnp.int32), 0, height - 1)
    labels = maps_PxHxW[row_n[:, None, None], y, x].astype(jnp.int32)
    n, (rows, columns) = labels.shape[0], grid
    cells = labels.reshape(n, rows, CELLS, columns, CELLS).transpose(0, 1, 3, 2, 4)
    return cells.reshape(n, rows * columns, CELLS * CELLS)
