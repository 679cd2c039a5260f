"""Stage `vision`: tower and projector learn to see before the decoder asks them anything.

Trained jointly from nothing, vision and decoder sit on a plateau for hundreds of steps: the decoder has no reason to look and
the tower no signal. A linear head that segments each view densely, from the very embeddings the decoder will get, gives a signal
for every token; the head is then dropped.
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
from mvg_jax.frames import Frame, full_frame, with_window, zoom
from mvg_jax.tools import render_views

OVERVIEWS = 2  # of a task's views, the first ones show the whole image
CELLS = 8  # a token's square is labelled on an 8 x 8 grid


class VisionState(NamedTuple):
    params: nnx.State
    head: dict[str, jax.Array]
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
        head = {"kernel": scale * jax.random.normal(jax.random.key(self.seed), (wide, CELLS * CELLS * self.classes)),
                "bias": jnp.zeros(CELLS * CELLS * self.classes)}
        return VisionState(params, head, self.optimizer.init((self._vision(params)[0], head)))

    def step(self, state: VisionState, number: int, tasks: Sequence[Task]) -> tuple[VisionState, dict]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        sources = jax.device_put(task_sources(tasks, *self.image_size))
        frames = [draw_view(task, rng, i) for task in tasks for i in range(self.views)]
        frames = jax.tree.map(lambda *leaves: np.stack(leaves), *frames)
        row = np.repeat(np.arange(len(tasks), dtype=np.int32), self.views)
        maps = np.stack([self.labels(task) for task in tasks])
        return self._update(state, sources, maps, row, frames)

    def params(self, state: VisionState) -> nnx.State:
        return state.params

    def _vision(self, params: nnx.State):
        return nnx.split_state(params, lambda path, _: path[0] in ("vision_tower", "multi_modal_projector"), ...)

    @functools.cached_property
    def _update(self):
        return jax.jit(self._update_step, donate_argnums=0)

    def _update_step(self, state: VisionState, sources, maps_PxHxW, row_n, frames_n):
        views = render_views(sources, row_n, frames_n, self.view_size)
        vision, rest = self._vision(state.params)
        weight_K = jnp.ones(self.classes).at[jnp.array(self.rare)].set(10.0)

        def loss_of(learned):
            vision, head = learned
            features_nxExD = nnx.merge(self.graph, nnx.merge_state(vision, rest)).encode_images(views)
            logits = features_nxExD @ head["kernel"] + head["bias"][None, None]
            n, E = logits.shape[:2]
            logits = logits.reshape(n, E, CELLS * CELLS, self.classes)
            labels = sample_labels(maps_PxHxW, row_n, frames_n, round(E**0.5))
            logprob = jax.nn.log_softmax(logits)
            picked = jnp.take_along_axis(logprob, labels[..., None], axis=-1)[..., 0]
            weight = weight_K[labels]
            right = (logits.argmax(-1) == labels).astype(jnp.float32)
            rare = (weight > 1.0).astype(jnp.float32)
            zoomed = jnp.broadcast_to((jnp.arange(n) % self.views >= OVERVIEWS)[:, None, None], rare.shape).astype(jnp.float32)
            return -(picked * weight).sum() / weight.sum(), {
                "accuracy": right.mean(),
                "accuracy_lesion_zoomed": (right * rare * zoomed).sum() / jnp.maximum((rare * zoomed).sum(), 1.0),
                "found_in_overview": jnp.where(
                    rare * (1 - zoomed) > 0, jnp.isin(logits.argmax(-1), jnp.array(self.rare)), 0.0
                ).sum() / jnp.maximum((rare * (1 - zoomed)).sum(), 1.0)}

        (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)((vision, state.head))
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, (vision, state.head))
        vision, head = optax.apply_updates((vision, state.head), updates)
        return VisionState(nnx.merge_state(vision, rest), head, opt_state), {"loss": loss} | metrics


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
