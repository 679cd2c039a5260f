"""What rollouts are held against: Hugging Face transformers, and our own engine driven the way its trainers drive theirs.

Both feed the whole history of every row again in each turn, its images included, and repeat a prompt for each of its samples.
torch and transformers are imported where they are used, and nowhere else.
"""

import dataclasses
import importlib.util
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.env.episode import StepResult
from mvg_jax.errors import RunError
from mvg_jax.models.config import ModelConfig
from mvg_jax.rollout.engine import Engine, Shapes
from mvg_jax.rollout.policies import SampledPolicy
from mvg_jax.rollout.scheduler import FirstViews, Phases, Prompts, Turns, World
from mvg_jax.rollout.slots import NONE
from mvg_jax.trajectory import MODEL, Trajectories

ROUND = 16  # histories are padded to a multiple of so many tokens: a compiled program for each


class Reprefill:
    """A policy that keeps nothing between turns: each prefills the running rows' whole histories and encodes all their images.

    engine_of: makes an engine of other shapes; kept, so that a second rollout of the same lengths compiles nothing.
    """

    def __init__(
        self,
        engine_of: Callable[[Shapes], Engine],
        params: nnx.State,
        shapes: Shapes,
        *,
        seed: int,
        sample_B: np.ndarray,
        temperature_B: np.ndarray,
    ):
        self._engine_of, self._params, self._shapes = engine_of, params, shapes
        self._seed, self._sample_B, self._temperature_B = seed, sample_B, temperature_B

    def begin(self, world: World, prompts: Prompts, phases: Phases) -> None:
        G, own = self._shapes.group, self._shapes.suffix_length
        repeat = lambda x: np.repeat(x, G, axis=0)
        self._world, self._prompts, self._number = world, prompts, 0
        self._tasks = [task for task in prompts.tasks for _ in range(G)]
        self._running_B = np.ones(len(self._tasks), bool)
        self._tokens_BxL = np.pad(repeat(prompts.tokens), ((0, 0), (0, own + ROUND)))
        self._length_B = repeat(prompts.length)
        self._views_BxN = np.pad(
            repeat(prompts.views.to_host(phases)), ((0, 0), (0, self._shapes.views), *((0, 0),) * 3)
        )
        self._held_B = np.array([len(task.images) for task in self._tasks])

    def turns(self, phases: Phases) -> Turns | None:
        if not self._running_B.any():
            return None
        B, T = len(self._running_B), self._shapes.turn_tokens
        rows_n = np.flatnonzero(self._running_B)
        # A batch of peers holds the rows that go on; here one of a few sizes, filled up with a row that says nothing.
        size = B
        while size // 2 >= len(rows_n):
            size //= 2
        row_n = np.concatenate([rows_n, np.full(size - len(rows_n), rows_n[0])])
        longest = -(-int(self._length_B[rows_n].max()) // ROUND) * ROUND
        policy = SampledPolicy(
            self._engine_of(self._whole(size, longest, int(self._held_B[rows_n].max()))),
            self._params,
            seed=self._seed,
            step=self._number,
            sample_B=self._sample_B[row_n],
            temperature_B=self._temperature_B[row_n],
        )
        policy.open(self._world, self._history(row_n, longest), phases, {i: () for i in range(len(rows_n))})
        tokens, count = np.zeros((B, T), np.int32), np.zeros(B, np.int32)
        logprobs, ended = np.zeros((B, T), np.float32), np.zeros(B, bool)
        while (turns := policy.turns(phases)) is not None:
            for whole, part in zip((tokens, logprobs, count, ended), turns[1:], strict=True):
                whole[rows_n[turns.row_n[turns.row_n != NONE]]] = part[turns.row_n != NONE]
            policy.observe(turns.row_n, _nothing(len(turns.row_n)), np.zeros(len(turns.row_n), bool), phases)
        self._number += 1
        self._append(tokens, count)
        return Turns(np.where(self._running_B, np.arange(B), NONE).astype(np.int32), tokens, logprobs, count, ended)

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        self._running_B = running_n & (row_n != NONE)  # all rows, in their order
        self._append(step.observation_ids, np.where(self._running_B, step.length_B, 0))
        count_B = np.where(self._running_B, step.count_B, 0)
        row, slot = np.nonzero(np.arange(step.views.shape[1])[None] < count_B[:, None])
        self._views_BxN[row, self._held_B[row] + slot] = np.asarray(step.views)[row, slot]
        self._held_B = self._held_B + count_B

    def _whole(self, rows: int, length: int, images: int) -> Shapes:
        """Of an engine that runs whole histories and draws one turn."""
        return dataclasses.replace(
            self._shapes,
            prompts=rows,
            group=1,
            slots=rows,
            pool=rows,
            prompt_length=length,
            suffix_length=self._shapes.turn_tokens,
            prompt_images=images,
            views=1,
            prefill_prompts=rows,
            encode_batches=(rows * images,),
            decode_slots=(rows,),
            decode_lengths=(self._shapes.turn_tokens,),
            decode_tokens=self._shapes.turn_tokens,
            idle=1.0,
            lanes=1,
        )

    def _history(self, row_n: np.ndarray, length: int) -> Prompts:
        """What these rows have said and seen, as prompts."""
        tokens_nxL, length_n, held_n = self._tokens_BxL[row_n, :length], self._length_B[row_n], self._held_B[row_n]
        first = lambda b: self._tasks[b].images[:1]
        views = self._views_BxN[row_n, : held_n.max()]
        return self._prompts._replace(
            tasks=tuple(dataclasses.replace(self._tasks[b], images=first(b) * self._held_B[b]) for b in row_n),
            tokens=tokens_nxL,
            length=length_n,
            last_position=self._world.next_position(tokens_nxL, length_n - 1, np.zeros_like(length_n)),
            views=FirstViews(lambda prompt_n: jnp.asarray(views[prompt_n]), len(row_n), len(row_n)),
        )

    def _append(self, tokens_BxT: np.ndarray, count_B: np.ndarray) -> None:
        row, step = np.nonzero(np.arange(tokens_BxT.shape[1])[None] < count_B[:, None])
        self._tokens_BxL[row, self._length_B[row] + step] = tokens_BxT[row, step]
        self._length_B = self._length_B + count_B


def _nothing(rows: int) -> StepResult:
    """What rows are told that do not go on."""
    none = np.zeros(rows, np.int32)
    return StepResult(np.zeros((rows, 0), np.int32), none, None, none, ("",) * rows, none)


class Request(NamedTuple):
    """A turn as generate is asked for it: the running rows' histories, padded on the left.

    tokens, mask: [n, L]. row: [n], which rows they are. images: [n], how many their histories show. new_tokens: drawn at most.
    """

    tokens: np.ndarray
    mask: np.ndarray
    row: np.ndarray
    images: np.ndarray
    new_tokens: int


def requests(trajectories: Trajectories, pad: int) -> list[Request]:
    """The turns of these trajectories. Rows of other lengths than the longest stop with it: a batch ends with its last row."""
    t, made = trajectories, []
    prompt_length_B = np.repeat(t.prompt_length_P, t.group_size)
    for turn in range(int(t.turn_BxL.max(initial=0)) + 1):
        own_BxL = (t.origin_BxL == MODEL) & (t.turn_BxL == turn)
        row = np.flatnonzero(own_BxL.any(axis=1))
        before = own_BxL.argmax(axis=1)
        length = prompt_length_B + before
        tokens = np.full((len(row), length[row].max()), pad, np.int64)
        mask = np.zeros_like(tokens)
        for i, b in enumerate(row):
            prompt = t.prompts_PxL[b // t.group_size, : prompt_length_B[b]]
            tokens[i, -length[b] :] = np.concatenate([prompt, t.tokens_BxL[b, : before[b]]])
            mask[i, -length[b] :] = 1
        images = ((tokens == t.image_token_id) & (mask == 1)).sum(axis=1) // t.tokens_per_image
        made.append(Request(tokens, mask, row, images, int(own_BxL.sum(axis=1).max())))
    return made


class Generate(NamedTuple):
    """How generate is run. cache: its cache_implementation. compiled: whether the pass of one token is compiled."""

    cache: str
    compiled: bool


# CPU: seconds of one core for a rollout (tiny, 8 rows, 3 turns of 32 tokens): dynamic 1.02, static 1.05. What torch.compile makes of
# static was not seen: it compiles for minutes, anew for each length of the cache. CUDA: what transformers recommends, not measured.
SETTINGS = {"cpu": Generate("dynamic", False), "cuda": Generate("static", True)}


class Transformers:
    """`generate` of transformers, turn by turn over the whole history, on the same ids, shapes and weights.

    folder: the model, as transformers reads it. pictures: the native image of each prompt, uint8 [H, W, 3]. Zooms are made by Pillow
    and normalised by torch; a view is normalised once, and encoded in every turn.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: ModelConfig,
        asked: Sequence[Request],
        pictures: Sequence[np.ndarray],
        group: int,
        *,
        temperature: float,
        banned: Sequence[int],
        end_of_turn: int | None,
        pad: int,
        dtype: str,
        settings: Generate | None = None,
    ):
        import torch
        import transformers
        from PIL import Image

        self._torch, self._image = torch, Image
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = settings or SETTINGS[self._device]
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        self._model = self._model.to(self._device).eval()
        self._model.generation_config.eos_token_id = end_of_turn  # None: no turn ends before its last token
        self._dtype = getattr(torch, dtype)
        self._asked, self._group, self._side = asked, group, model.vision.image_size
        self._pictures = [Image.fromarray(picture) for picture in pictures]
        self._mean, self._std = (torch.tensor(x).view(3, 1, 1) for x in (model.image_mean, model.image_std))
        self._options = {
            "do_sample": temperature > 0,
            "use_cache": True,
            "pad_token_id": pad,
            "suppress_tokens": sorted(banned),
            "cache_implementation": settings.cache,
        }
        if temperature > 0:
            self._options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        if settings.compiled and self._device == "cpu":  # on CUDA generate compiles by itself
            self._options["compile_config"] = compile_config = transformers.CompileConfig(mode="default")
            compile_config._compile_all_devices = True
        self._options["disable_compile"] = not settings.compiled

    def run(self, new_tokens: int | None = None) -> float:
        """Seconds of the rollout, all work included. new_tokens: drawn in each turn instead of what was asked for."""
        torch = self._torch
        start = time.perf_counter()
        views = {}  # row -> its images' tensors
        with torch.inference_mode():
            first = [self._view(picture) for picture in self._pictures]
            for request in self._asked:
                for row, count in zip(request.row.tolist(), request.images.tolist(), strict=True):
                    held = views.setdefault(row, [first[row // self._group]])
                    while len(held) < count:
                        held.append(self._view(self._zoom(self._pictures[row // self._group])))
                pixels = torch.stack([view for row in request.row.tolist() for view in views[row]])
                self._model.generate(
                    input_ids=torch.from_numpy(request.tokens).to(self._device),
                    attention_mask=torch.from_numpy(request.mask).to(self._device),
                    pixel_values=pixels.to(self._device, self._dtype),
                    max_new_tokens=new_tokens or request.new_tokens,
                    **self._options | ({"disable_compile": True} if new_tokens == 1 else {}),
                )
            if self._device == "cuda":
                torch.cuda.synchronize()
        return time.perf_counter() - start

    def _zoom(self, picture):
        width, height = picture.size
        return picture.crop((width // 4, height // 4, width * 3 // 4, height * 3 // 4))

    def _view(self, picture):
        torch = self._torch
        resized = picture.resize((self._side, self._side), self._image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return (pixels.float() / 255.0 - self._mean) / self._std


def check_transformers() -> None:
    """RunError says what to install."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"--against=transformers needs {' and '.join(missing)}: pip install torch transformers")


def grey_pictures(tasks) -> list[np.ndarray]:
    """The first image of each task as uint8 [H, W, 3], its window applied."""
    made = []
    for task in tasks:
        image = task.images[0]
        low, high = image.window
        values = image.pixels.astype(np.float32) * image.slope + image.intercept
        grey = np.clip(np.round((values - low) / (high - low) * 255.0), 0, 255).astype(np.uint8)
        made.append(grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2))
    return made
