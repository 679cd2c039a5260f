"""Stage `vision`: tower and projector learn to see before the decoder asks them anything.

Trained jointly from nothing, vision and decoder sit on a plateau for hundreds of steps: the decoder has no reason to look and
the tower no signal. Two linear heads on the very embeddings that the decoder will get give a signal for every token: one segments
the token's square, one says where in an overview a finding lies, at the token that holds its centre (a segmentation alone never needs
to know which square it looks at, and the decoder then takes long to learn places). The heads are dropped afterwards.
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

from mvg_jax.data.task import Task
from mvg_jax.env.episode import task_sources
from mvg_jax.frames import Frame, box_from_source, full_frame, with_window, zoom
from mvg_jax.tools import render_views

OVERVIEWS = 2  # of a task's views, the first ones show the whole image
PLACES = 50  # bins along each axis of a view for a finding's centre
MAX_BOXES = 2  # findings of a task that are placed
PLACE_WEIGHT = 0.1  # at 1 the places, whose loss is the larger, keep the classes from being learnt
CELLS = 8  # a token's square is labelled on an 8 x 8 grid


class VisionState(NamedTuple):
    params: nnx.State
    head: dict[str, dict[str, jax.Array]]
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True, eq=False)
class VisionStage:
    """Dense segmentation of `views` views of each of `prompts` tasks a step.

    labels: task -> class map [H, W] uint8 of its first image. rare: classes whose cells weigh ten times: they are small.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    labels: Callable[[Task], np.ndarray]
    classes: int
    rare: tuple[int, ...]
    views: int
    view_size: int
    image_size: tuple[int, int]
    seed: int

    def start(self, params: nnx.State) -> VisionState:
        wide = nnx.merge(self.graph, params).config.text.hidden_size
        scale = wide**-0.5
        sizes = {"class": CELLS * CELLS * self.classes, "place": 2 * PLACES}
        keys = jax.random.split(jax.random.key(self.seed), len(sizes))
        head = {
            name: {"kernel": scale * jax.random.normal(key, (wide, size)), "bias": jnp.zeros(size)}
            for key, (name, size) in zip(keys, sizes.items(), strict=True)
        }
        return VisionState(params, head, self.optimizer.init((self._vision(params)[0], head)))

    def step(self, state: VisionState, number: int, tasks: Sequence[Task]) -> tuple[VisionState, dict]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        sources = jax.device_put(task_sources(tasks, *self.image_size))
        frames = [draw_view(task, rng, i) for task in tasks for i in range(self.views)]
        nowhere = np.full((MAX_BOXES, 2), -1.0, np.float32)
        centres = np.stack(
            [
                box_centres(task, frames[p * self.views + i]) if i < OVERVIEWS else nowhere
                for p, task in enumerate(tasks)
                for i in range(self.views)
            ]
        )
        frames = jax.tree.map(lambda *leaves: np.stack(leaves), *frames)
        row = np.repeat(np.arange(len(tasks), dtype=np.int32), self.views)
        maps = np.stack([self.labels(task) for task in tasks])
        return self._update(state, sources, maps, row, frames, centres)

    def params(self, state: VisionState) -> nnx.State:
        return state.params

    def _vision(self, params: nnx.State):
        return nnx.split_state(params, lambda path, _: path[0] in ("vision_tower", "multi_modal_projector"), ...)

    @functools.cached_property
    def _update(self):
        return jax.jit(self._update_step, donate_argnums=0)

    def _update_step(self, state: VisionState, sources, maps_PxHxW, row_n, frames_n, centre_nxMx2):
        views = render_views(sources, row_n, frames_n, self.view_size)
        vision, rest = self._vision(state.params)
        weight_K = jnp.ones(self.classes).at[jnp.array(self.rare)].set(10.0)

        def loss_of(learned):
            vision, head = learned
            features_nxExD = nnx.merge(self.graph, nnx.merge_state(vision, rest)).encode_images(views)
            logits = _linear(head["class"], features_nxExD)
            n, E = logits.shape[:2]
            place_loss, place_right = place_terms(head["place"], features_nxExD, centre_nxMx2)
            logits = logits.reshape(n, E, CELLS * CELLS, self.classes)
            labels = sample_labels(maps_PxHxW, row_n, frames_n, round(E**0.5))
            logprob = jax.nn.log_softmax(logits)
            picked = jnp.take_along_axis(logprob, labels[..., None], axis=-1)[..., 0]
            weight = weight_K[labels]
            right = (logits.argmax(-1) == labels).astype(jnp.float32)
            rare = (weight > 1.0).astype(jnp.float32)
            zoomed = jnp.broadcast_to((jnp.arange(n) % self.views >= OVERVIEWS)[:, None, None], rare.shape).astype(
                jnp.float32
            )
            return -(picked * weight).sum() / weight.sum() + PLACE_WEIGHT * place_loss, {
                "accuracy": right.mean(),
                "place_within_one_bin": place_right,
                "accuracy_lesion_zoomed": (right * rare * zoomed).sum() / jnp.maximum((rare * zoomed).sum(), 1.0),
                "found_in_overview": jnp.where(
                    rare * (1 - zoomed) > 0, jnp.isin(logits.argmax(-1), jnp.array(self.rare)), 0.0
                ).sum()
                / jnp.maximum((rare * (1 - zoomed)).sum(), 1.0),
            }

        (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)((vision, state.head))
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, (vision, state.head))
        vision, head = optax.apply_updates((vision, state.head), updates)
        return VisionState(nnx.merge_state(vision, rest), head, opt_state), {"loss": loss} | metrics


def _linear(head: dict[str, jax.Array], x_nxExD: jax.Array) -> jax.Array:
    return x_nxExD @ head["kernel"] + head["bias"][None, None]


def place_terms(
    head: dict[str, jax.Array], features_nxExD: jax.Array, centre_nxMx2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy of both coordinates' bins, share of centres within one bin), over centres inside their view."""
    grid = round(features_nxExD.shape[1] ** 0.5)
    inside = ((centre_nxMx2 >= 0) & (centre_nxMx2 < 1)).all(axis=-1)
    centre = jnp.clip(centre_nxMx2, 0.0, 0.999)
    column, row = jnp.floor(centre[..., 0] * grid), jnp.floor(centre[..., 1] * grid)
    token_nxM = (row * grid + column).astype(jnp.int32)
    at_nxMxD = jnp.take_along_axis(features_nxExD, token_nxM[..., None], axis=1)
    logits = _linear(head, at_nxMxD).reshape(*token_nxM.shape, 2, PLACES)
    target = jnp.floor(centre * PLACES).astype(jnp.int32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    near = (jnp.abs(logits.argmax(axis=-1) - target) <= 1).all(axis=-1)
    count = jnp.maximum(inside.sum(), 1)
    return -jnp.where(inside[..., None], picked, 0.0).sum() / count, jnp.where(inside, near, False).sum() / count


def box_centres(task: Task, frame: Frame) -> np.ndarray:
    """Centres of a task's boxes in view units, float32 [MAX_BOXES, 2]; -1 where there is none."""
    height, width = task.images[0].pixels.shape[:2]
    centres = np.full((MAX_BOXES, 2), -1.0, np.float32)
    for i, box in enumerate(task.boxes[:MAX_BOXES]):
        source = np.array(box.xyxy, np.float32) / 1000 * np.array([width, height, width, height], np.float32)
        x1, y1, x2, y2 = box_from_source(frame, source) / 1000
        centres[i] = (x1 + x2) / 2, (y1 + y2) / 2
    return centres


def draw_view(task: Task, rng: np.random.Generator, index: int) -> Frame:
    """A view to learn from: the overview, the overview in a bone window, then zooms, most of them on a labelled box."""
    image = task.images[0]
    height, width = image.pixels.shape[:2]
    whole = full_frame(height, width, image.window, 0)
    if index == 0:
        return whole
    if index == 1 and image.unit == "HU":
        return with_window(whole, -500.0, 1300.0)
    x, y = rng.uniform(150, 850, 2)
    if task.boxes and rng.random() < 0.9:
        x1, y1, x2, y2 = task.boxes[rng.integers(len(task.boxes))].xyxy
        x, y = np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + rng.uniform(-50, 50, 2)
    side = 160.0 if rng.random() < 0.7 else rng.uniform(120, 300)
    left, top = np.clip([x - side / 2, y - side / 2], 0, 1000 - side)
    return zoom(whole, np.array([left, top, left + side, top + side], np.float32))


def sample_labels(maps_PxHxW: jax.Array, row_n: jax.Array, frames_n: Frame, grid: int) -> jax.Array:
    """Class at the centre of each cell of each token, by the view's frame: int32 [n, grid*grid, CELLS*CELLS]."""
    side = grid * CELLS
    centre = (jnp.arange(side) + 0.5) / side
    v, u = jnp.meshgrid(centre, centre, indexing="ij")
    unit = jnp.stack([u, v, jnp.ones_like(u)], axis=-1)
    xy = jnp.einsum("nij,vuj->nvui", frames_n.affine, unit)
    height, width = maps_PxHxW.shape[1:]
    x = jnp.clip(jnp.floor(xy[..., 0]).astype(jnp.int32), 0, width - 1)
    y = jnp.clip(jnp.floor(xy[..., 1]).astype(jnp.int32), 0, height - 1)
    labels = maps_PxHxW[row_n[:, None, None], y, x].astype(jnp.int32)
    n = labels.shape[0]
    cells = labels.reshape(n, grid, CELLS, grid, CELLS).transpose(0, 1, 3, 2, 4)
    return cells.reshape(n, grid * grid, CELLS * CELLS)
