"""Who speaks in a rollout: the model, a script, or a script that the model goes on from."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mvg_jax.data.task import Turn
from mvg_jax.env.episode import StepResult
from mvg_jax.env.protocol import Protocol
from mvg_jax.errors import RunError
from mvg_jax.mesh import agree, gather, local_shards, put_rows, shard_count
from mvg_jax.rollout.engine import Engine, Going, Opening, Told, bucket
from mvg_jax.rollout.lanes import Lane, first_to_land
from mvg_jax.rollout.sampling import Sampling, row_keys
from mvg_jax.rollout.scheduler import Phases, Prompts, Turns, World
from mvg_jax.rollout.slots import NONE, Slots
from mvg_jax.tools.spec import MAX_VIEWS


class Piece(NamedTuple):
    """Something that a row is told: token ids, and how many of its views are in it."""

    tokens: Sequence[int]
    views: int


class SampledPolicy:
    """The model itself, drawn by the engine. seed and step name the noise, with each row's task and sample.

    Rows are seated in the engine's slots as these become free (see slots.py). Between two calls of decode, rows that have finished a
    turn are handed to the environment, and those that it has answered are fed the answer. The host does that for one lane at a time;
    on the CPU the programs of the others run meanwhile. What a lane runs next follows from its own tokens alone, so that no sample
    depends on which of them is served first: on one device the one that has drawn first, on several the same one in all processes.

    top_k, top_p: of all rows; see `sampling.Sampling`. Not for training, whose learner scores what was drawn without them.
    """

    def __init__(
        self,
        engine: Engine,
        params: list[jax.Array],
        *,
        seed: int,
        step: int,
        sample_B: np.ndarray,
        temperature_B: np.ndarray,
        top_k: int = 0,
        top_p: float = 1.0,
    ):
        self._engine, self._params = engine, params
        self._noise = (seed, step, sample_B)
        self._sampling_B = Sampling.of(temperature_B, top_k, top_p)

    def begin(self, world: World, prompts: Prompts, phases: Phases) -> None:
        self.open(world, prompts, phases, {b: () for b in range(len(prompts.tasks) * self._engine.shapes.group)})

    def open(
        self,
        world: World,
        prompts: Prompts,
        phases: Phases,
        told: Mapping[int, Sequence[Piece]],
        views: np.ndarray | None = None,
    ) -> None:
        """Takes the prompts in. told: the rows that will play, each with what it is told before it speaks for the first time.

        views: [B, V, H, W, 3] uint8 on the host, those in what rows are told; None: none.
        """
        shapes, shards, every = self._engine.shapes, local_shards(), shard_count()
        seed, step, sample_B = self._noise
        P, G = len(prompts.tasks), shapes.group
        B = P * G
        self._world, self._prompts, self._told_views = world, prompts, views
        self._rows_a_shard = B // shards
        self._names_Bx4 = row_keys(seed, step, [task.id for task in prompts.tasks for _ in range(G)], sample_B)
        # Of each row: its pending token and that token's position, tokens in the cache, tokens left of its turn, views had and read.
        last_P = prompts.tokens[np.arange(P), prompts.length - 1]
        self._pending_B, self._position_B = np.repeat(last_P, G), np.repeat(prompts.last_position, G)
        self._length_B, self._left_B, self._seen_B, self._read_B = (np.zeros(B, np.int32) for _ in range(4))
        self._ended_B = np.zeros(B, bool)
        self._said: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(B)]
        self._told = [collections.deque(self._fitting(told.get(b, ()))) for b in range(B)]
        local = [[b % self._rows_a_shard for b in told if b // self._rows_a_shard == shard] for shard in range(shards)]
        own_thread = shapes.lanes > 1 and jax.sharding.get_mesh().empty
        self._lanes: collections.deque[Lane] = collections.deque()  # the first is the one whose turn it is
        for number in range(shapes.lanes):
            mine = [[row for row in rows if row // G % shapes.lanes == number] for rows in local]
            slots = [Slots(rows, G, shapes.slots // every, shapes.pool // every) for rows in mine]
            self._lanes.append(Lane(slots, self._engine, self._params, phases, own_thread=own_thread))

    def turns(self, phases: Phases) -> Turns | None:
        shapes = self._engine.shapes
        while self._lanes:
            lane = self._next(phases)
            self._land(lane, phases.counts)
            going, over, _, _ = self._census(lane)
            if over and (over >= shapes.idle * (going + over) or not going):
                return self._hand_over(lane)  # and comes back to this lane
            self._seat(lane, phases)
            self._read(lane, phases.counts)
            going, over, reading, queued = self._census(lane)
            if going:
                need = max(1, math.ceil(shapes.idle * (going + over)))
                self._launch(lane, going - (need - over) + 1)
                self._lanes.rotate(-1)
            elif not reading and not queued:
                self._lanes.popleft().close()
        return None

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        lane = self._lanes[0]  # that has handed them over
        count_n = np.where(running_n, step.count_B, 0)
        if any(agree(int(count_n.max()))):
            self._look(lane, row_n, step.views, count_n)
        for i in np.flatnonzero(row_n != NONE).tolist():
            shard, local = divmod(int(row_n[i]), self._rows_a_shard)
            if running_n[i]:
                tokens = step.observation_ids[i, : step.length_B[i]].tolist()
                self._told[row_n[i]].append(Piece(tokens, int(count_n[i])))
                lane.reading[shard].append(int(row_n[i]))
            else:
                lane.slots[shard].leave(local)

    def _next(self, phases: Phases) -> Lane:
        """The lane that is served now. Those that are not in flight stand in front."""
        if self._lanes[0].flight is not None:
            with phases("decode"):
                lane = first_to_land(self._lanes)
            self._lanes.remove(lane)
            self._lanes.appendleft(lane)
        return self._lanes[0]

    # ---- decode: started, and read later ------------------------------------------------------------------------------

    def _going(self, lane: Lane) -> list[list[int]]:
        """The rows of each shard that have tokens to draw, numbered as in the shard."""
        return [
            [row for row in slots.row_S.tolist() if row != NONE and self._left_B[shard * self._rows_a_shard + row]]
            for shard, slots in enumerate(lane.slots)
        ]

    def _census(self, lane: Lane) -> tuple[int, int, int, int]:
        """Rows of all processes that have tokens to draw, have just finished a turn, have something to read, and wait for a slot."""
        many = lambda lists: sum(map(len, lists))
        queued = sum(slots.queued for slots in lane.slots)
        counts = [many(self._going(lane)), many(lane.over), many(lane.reading), queued]
        return tuple(gather(np.array([counts])).sum(axis=0).tolist())

    def _launch(self, lane: Lane, least: int) -> None:
        """Starts decode on as much of the cache as those need who have tokens to draw."""
        shapes, every, A = self._engine.shapes, shard_count(), self._rows_a_shard
        going = self._going(lane)
        left_B = np.minimum(self._left_B, shapes.decode_tokens)
        ends = [
            self._length_B[shard * A + row] + left_B[shard * A + row]
            for shard in range(len(going))
            for row in going[shard]
        ]
        most, longest = agree(max(map(len, going)), int(max(ends, default=1)))
        self._move(lane, going, bucket(shapes.decode_slots, most * every, "rollout.decode_slots") // every)
        last = max(
            (slots.slot(row) + 1 for slots, rows in zip(lane.slots, going, strict=True) for row in rows), default=1
        )
        n = bucket(shapes.decode_slots, agree(last)[0] * every, "rollout.decode_slots") // every
        length = bucket(shapes.decode_lengths, longest, "rollout.decode_lengths")
        seat_S = np.full((len(lane.slots), n), shapes.pool // every * shapes.group, np.int32)
        row_S, count_M = np.full_like(seat_S, NONE), []
        for shard, slots in enumerate(lane.slots):
            for local in going[shard]:
                slot = slots.slot(local)
                seat_S[shard, slot] = slots.entry(local) * shapes.group + local % shapes.group
                row_S[shard, slot] = shard * A + local
            length_M = self._prompts.length[shard * A // shapes.group + slots.prompt_M]
            count_M.append(np.where(slots.prompt_M == NONE, 0, length_M - 1))
        row_S, seat_S = row_S.reshape(-1), seat_S.reshape(-1)
        of = lambda x_B: np.where(row_S == NONE, 0, x_B[row_S]).astype(np.int32)
        numbers = (of(x) for x in (self._pending_B, self._length_B, self._position_B, left_B))
        sampling = Sampling(*(x_B[row_S] for x_B in self._sampling_B))
        leasts = np.full(len(row_S), least, np.int32)
        those = Going(seat_S, *numbers, leasts, self._names_Bx4[row_S], sampling)
        # In lanes that have not begun nobody has to wait yet.
        queued = any(slots.queued for one in self._lanes if one.begun for slots in one.slots)
        lane.launch(row_S, those, np.concatenate(count_M).astype(np.int32), length, queued)

    def _move(self, lane: Lane, going: Sequence[Sequence[int]], slots: int) -> None:
        """Seats those who go on in the first slots of each shard, where there is room."""
        shapes, every = self._engine.shapes, shard_count()
        moves = [own.gather(rows, slots) for own, rows in zip(lane.slots, going, strict=True)]
        n, nobody = shapes.turn_batches[0] // every, shapes.slots // every
        for first in range(0, agree(max(map(len, moves)))[0], n):
            ends = np.full((len(moves), n, 2), nobody, np.int32)
            for shard, pairs in enumerate(moves):
                for i, pair in enumerate(pairs[first : first + n]):
                    ends[shard, i] = pair
            lane.move(ends[..., 0].reshape(-1), ends[..., 1].reshape(-1))

    def _land(self, lane: Lane, counts: collections.Counter[str]) -> None:
        """Takes in what decode has drawn, if it was started."""
        landed = lane.land()
        if landed is None:
            return
        row_S, queued, drawn = landed
        if not np.isfinite(drawn.logprobs).all():
            raise RunError(
                "the model's log-probabilities are no numbers: its weights have diverged in training, or are broken"
            )
        for s in np.flatnonzero(drawn.count).tolist():
            row, count = int(row_S[s]), int(drawn.count[s])
            self._said[row].append((drawn.tokens[s, :count], drawn.logprobs[s, :count]))
            self._pending_B[row] = drawn.tokens[s, count - 1]
            self._length_B[row] += count
            self._position_B[row] += count
            self._left_B[row] -= count
            if drawn.ended[s] or not self._left_B[row]:
                self._ended_B[row], self._left_B[row] = drawn.ended[s], 0
                lane.over[row // self._rows_a_shard].append(row)
        steps, drawn_tokens = int(drawn.count.max(initial=0)), int(drawn.count.sum())
        counts.update(decode_calls=1, decode_steps=steps, positions=steps * len(row_S))
        when, slots = "queued" if queued else "drain", self._engine.shapes.slots // jax.process_count()
        counts.update({f"slot_steps/{when}": steps * slots, f"tokens/{when}": drawn_tokens})

    def _hand_over(self, lane: Lane) -> Turns:
        """The turns that are over, in the smaller of two batches where they fit."""
        shapes, every, T = self._engine.shapes, shard_count(), self._engine.shapes.turn_tokens
        (most,) = agree(max(map(len, lane.over)))
        n = bucket(shapes.turn_batches, most * every, "rollout.slots") // every
        row_n = np.concatenate([np.array(rows + [NONE] * (n - len(rows)), np.int32) for rows in lane.over])
        count_n = np.zeros(len(row_n), np.int32)
        tokens, logprobs = np.zeros((len(row_n), T), np.int32), np.zeros((len(row_n), T), np.float32)
        for i in np.flatnonzero(row_n != NONE).tolist():
            said, row = self._said[row_n[i]], row_n[i]
            count_n[i] = sum(len(part) for part, _ in said)
            for into, parts in zip((tokens, logprobs), zip(*said, strict=True), strict=True):
                into[i, : count_n[i]] = np.concatenate(parts)
            self._said[row] = []
        lane.over = [[] for _ in lane.over]
        return Turns(row_n, tokens, logprobs, count_n, self._ended_B[row_n] & (row_n != NONE))

    # ---- what rows read -----------------------------------------------------------------------------------------------

    def _seat(self, lane: Lane, phases: Phases) -> None:
        """Prompts enter the pool and rows their slots, while there is room for both."""
        shapes, every = self._engine.shapes, shard_count()
        while True:
            begun = []
            for shard, slots in enumerate(lane.slots):
                begun += [shard * self._rows_a_shard + local for local in slots.fill()]
            self._sit_down(lane, begun)
            entered = [slots.load(shapes.prefill_prompts // every) for slots in lane.slots]
            if not any(agree(max(map(len, entered)))):
                return
            self._prefill(lane, entered, phases)

    def _sit_down(self, lane: Lane, begun: Sequence[int]) -> None:
        for row in begun:
            if self._told[row]:
                lane.reading[row // self._rows_a_shard].append(row)
            else:
                self._left_B[row] = self._engine.shapes.turn_tokens
        if self._told_views is not None and any(agree(len(begun))):
            # As many for each shard as it has slots, those who have just sat down first.
            slots = self._engine.shapes.slots // shard_count()
            mine = [[row for row in begun if row // self._rows_a_shard == shard] for shard in range(len(lane.slots))]
            row_n = np.array([row for rows in mine for row in rows + [NONE] * (slots - len(rows))], np.int32)
            count_n = np.array([sum(piece.views for piece in self._told[row]) if row != NONE else 0 for row in row_n])
            self._look(lane, row_n, put_rows(self._told_views[row_n]), count_n)

    def _look(self, lane: Lane, row_n: np.ndarray, views: jax.Array, count_n: np.ndarray) -> None:
        """Keeps new views [n, R, H, W, 3] of seated rows, the first count_n of each, until they are fed."""
        shapes, every = self._engine.shapes, shard_count()
        slot_n = np.full(len(row_n), shapes.slots // every, np.int32)
        place_nxR = np.full((len(row_n), views.shape[1]), shapes.views, np.int32)
        for i in np.flatnonzero((row_n != NONE) & (count_n > 0)).tolist():
            shard, local = divmod(int(row_n[i]), self._rows_a_shard)
            slot_n[i] = lane.slots[shard].slot(local)
            place_nxR[i, : count_n[i]] = self._seen_B[row_n[i]] + np.arange(count_n[i])
            self._seen_B[row_n[i]] += count_n[i]
        lane.see(views, slot_n, place_nxR)

    def _fitting(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same in pieces that a bucket holds; one with views stays whole."""
        most = max(self._engine.shapes.observation_lengths)
        cut = lambda p: [p] if p.views else [Piece(p.tokens[i : i + most], 0) for i in range(0, len(p.tokens), most)]
        return [part for piece in pieces for part in cut(piece)]

    def _prefill(self, lane: Lane, entered: Sequence[Sequence[tuple[int, int]]], phases: Phases) -> None:
        """entered: of each shard, prompts and their places in the pool."""
        shapes, every, prompts = self._engine.shapes, shard_count(), self._prompts
        p, N, own = shapes.prefill_prompts // every, shapes.prompt_images, len(prompts.tasks) // len(entered)
        prompt_n = np.full((len(entered), p), NONE, np.int32)
        entry_n = np.full((len(entered), p), shapes.pool // every, np.int32)
        images_n, index = np.zeros_like(prompt_n), [[] for _ in entered]
        for shard, pairs in enumerate(entered):
            for i, (prompt, entry) in enumerate(pairs):
                prompt_n[shard, i], entry_n[shard, i] = shard * own + prompt, entry
                images_n[shard, i] = len(prompts.tasks[shard * own + prompt].images)
                index[shard] += range(i * N, i * N + images_n[shard, i])
        prompt_n, seen = prompt_n.reshape(-1), self._places(images_n, N)
        with phases("tools") as work:
            views = prompts.views.of(prompt_n)
            work.append(views)
        self._encode(lane, index, p * N, p * N, views)
        count_n = np.where(prompt_n == NONE, 0, prompts.length[prompt_n] - 1).astype(np.int32)
        opening = Opening(entry_n.reshape(-1), prompts.tokens[prompt_n], count_n, seen)
        lane.prefill(opening)
        phases.counts["positions"] += opening.tokens_PxL.size

    def _read(self, lane: Lane, counts: collections.Counter[str]) -> None:
        """Feeds rows what they were told, those of like length in full batches; a rest that fills none waits once for more."""
        shapes = self._engine.shapes
        table = [n // shard_count() for n in shapes.extend_rows]
        for X in shapes.observation_lengths:
            while True:
                rows = [[row for row in rows if self._fits(row) == X] for rows in lane.reading]
                (most,) = agree(max(map(len, rows)))
                if not most:
                    break
                if most < table[0] and X not in lane.held and self._census(lane)[0]:
                    lane.held.add(X)
                    break
                n = max((n for n in table if n <= most), default=table[0])
                self._extend(lane, [mine[:n] for mine in rows], n, X)
                counts["positions"] += n * len(rows) * X
                lane.held.discard(X)

    def _fits(self, row: int) -> int:
        """The bucket of what a row reads next."""
        return bucket(
            self._engine.shapes.observation_lengths, len(self._told[row][0].tokens), "rollout.observation_lengths"
        )

    def _extend(self, lane: Lane, rows: Sequence[Sequence[int]], n: int, X: int) -> None:
        """One piece of up to X tokens for each of these rows, up to n of every shard."""
        shapes, every, prompts = self._engine.shapes, shard_count(), self._prompts
        lane.reading = [[r for r in waiting if r not in mine] for waiting, mine in zip(lane.reading, rows, strict=True)]
        row_n = np.array([row for mine in rows for row in mine + [NONE] * (n - len(mine))], np.int32)
        pieces = [self._told[row].popleft() if row != NONE else Piece((), 0) for row in row_n.tolist()]
        zeros = lambda *more: np.zeros((len(row_n), *more), np.int32)
        views_n = np.array([piece.views for piece in pieces])
        seen = self._places(views_n.reshape(len(rows), n), MAX_VIEWS)
        told = Told(zeros() + shapes.slots // every, zeros(), zeros(), zeros(X), zeros(), zeros(), zeros(), seen)
        index: list[list[int]] = [[] for _ in rows]
        for i in np.flatnonzero(row_n != NONE).tolist():
            row, piece = int(row_n[i]), pieces[i]
            shard, local = divmod(row, self._rows_a_shard)
            slots = lane.slots[shard]
            told.slot[i], told.entry[i] = slots.slot(local), slots.entry(local)
            told.prompt_count[i] = prompts.length[row // shapes.group] - 1
            if piece.tokens[-1] == self._world.protocol.vocabulary.image:
                raise ValueError("what a row is told ends with an image; a word must follow it")
            told.tokens_nxX[i, : len(piece.tokens)] = [self._pending_B[row], *piece.tokens[:-1]]
            told.count[i], told.length[i], told.position[i] = (
                len(piece.tokens),
                self._length_B[row],
                self._position_B[row],
            )
            first = told.slot[i] * shapes.views + self._read_B[row]
            index[shard] += range(first, first + piece.views)
            self._pending_B[row] = piece.tokens[-1]
            self._read_B[row] += piece.views
            if self._told[row]:
                lane.reading[shard].append(row)
            else:
                self._left_B[row] = shapes.turn_tokens
        there = row_n != NONE
        self._length_B[row_n[there]] += told.count[there]
        after_n = self._world.next_position(told.tokens_nxX, told.count, told.position)
        self._position_B[row_n[there]] = after_n[there]
        if any(agree(int(views_n.max()))):
            self._encode(lane, index, 0, len(lane.slots[0].row_S) * shapes.views)
        lane.extend(told)

    def _encode(
        self, lane: Lane, index: Sequence[Sequence[int]], least: int, many: int, views: jax.Array | None = None
    ) -> None:
        """Features of those named for each shard of its `many` views, by default the lane's, until the next call; in a bucket for at
        least `least` a shard."""
        every = shard_count()
        (most,) = agree(max(least, *map(len, index)))
        n = bucket(self._engine.shapes.encode_batches, most * every, "rollout.encode_batches") // every
        lane.encode(np.array([i for mine in index for i in [*mine, *[many] * (n - len(mine))]], np.int32), views)

    def _places(self, count_Sxn: np.ndarray, most: int) -> np.ndarray:
        """[S * n, most] int32: where a row's features stand when those of a shard's rows are encoded one after the other."""
        nobody = max(self._engine.shapes.encode_batches) // shard_count()
        first_Sxn = np.cumsum(count_Sxn, axis=1) - count_Sxn
        step = np.arange(most)[None, None]
        place = np.where(step < count_Sxn[..., None], first_Sxn[..., None] + step, nobody)
        return place.reshape(-1, most).astype(np.int32)


class ScriptedPolicy:
    """Turns written beforehand, as token ids: how demonstrations get their observations and become trajectories.

    script: the turns of each row. A row whose script is over although it is still running is cut off.
    """

    def __init__(self, protocol: Protocol, script: Sequence[Sequence[Turn]], turn_tokens: int):
        self._T = turn_tokens
        self.script = [
            [[*protocol.turn_ids(turn), protocol.vocabulary.end_of_turn] for turn in turns] for turns in script
        ]

    def begin(self, world: World, prompts: Prompts, phases: Phases) -> None:
        self._number, self._running_B = 0, np.ones(len(self.script), bool)

    def turns(self, phases: Phases) -> Turns | None:
        if not any(agree(int(self._running_B.any()))):
            return None
        self._number += 1
        return self.speak(self._number - 1, self._running_B)

    def speak(self, number: int, rows_B: np.ndarray) -> Turns:
        """Turn `number` of these rows, for the others none."""
        B, T = len(rows_B), self._T
        tokens, count = np.zeros((B, T), np.int32), np.zeros(B, np.int32)
        for b in np.flatnonzero(rows_B).tolist():
            ids = self.script[b][number] if number < len(self.script[b]) else []
            if len(ids) > T:
                raise ValueError(f"a scripted turn of {len(ids)} tokens does not fit rollout.turn_tokens={T}")
            tokens[b, : len(ids)], count[b] = ids, len(ids)
        row_n = np.where(rows_B, np.arange(B), NONE).astype(np.int32)
        return Turns(row_n, tokens, np.zeros((B, T), np.float32), count, count > 0)

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        self._running_B = running_n


class GuidedPolicy:
    """Opens each row with scripted turns and lets the model go on: what it makes of views that someone else asked for.

    turns: how many are scripted at most. A row whose script is shorter, or empty, speaks for itself from there on.
    """

    def __init__(self, scripted: ScriptedPolicy, sampled: SampledPolicy, turns: int):
        self._scripted, self._sampled, self._turns = scripted, sampled, turns

    def begin(self, world: World, prompts: Prompts, phases: Phases) -> None:
        B = len(self._scripted.script)
        self._world, self._prompts, self._number, self._opened = world, prompts, 0, False
        self._running_B = np.ones(B, bool)
        self._told: list[list[Piece]] = [[] for _ in range(B)]
        self._views: list[list[np.ndarray]] = [[] for _ in range(B)]

    def turns(self, phases: Phases) -> Turns | None:
        while self._number < self._turns:
            self._number += 1
            has_B = np.array([self._number <= len(turns) for turns in self._scripted.script])
            if any(agree(int((self._running_B & has_B).any()))):
                self._spoken = self._scripted.speak(self._number - 1, self._running_B & has_B)
                return self._spoken
        if not self._opened:
            self._opened = True
            told = {b: self._told[b] for b in np.flatnonzero(self._running_B).tolist()}
            self._sampled.open(self._world, self._prompts, phases, told, self._shown())
        return self._sampled.turns(phases)

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        if self._opened:
            self._sampled.observe(row_n, step, running_n, phases)
            return
        views = phases.to_host(step.views)
        for b in np.flatnonzero(row_n != NONE).tolist():  # a script speaks for all rows at once, in their order
            self._running_B[b] = running_n[b]
            if running_n[b]:
                spoken = self._spoken.tokens[b, : self._spoken.count[b]].tolist()
                observed = step.observation_ids[b, : step.length_B[b]].tolist()
                self._told[b] += [Piece(spoken, 0), Piece(observed, int(step.count_B[b]))]
                self._views[b] += list(views[b, : step.count_B[b]])

    def _shown(self) -> np.ndarray:
        """[B, V, H, W, 3] uint8: the views of each row so far, in order."""
        room = self._world.shapes.views
        shown = np.zeros((len(self._views), room, *self._world.view.shape), np.uint8)
        for b, views in enumerate(self._views):
            shown[b, : len(views)] = np.reshape(views, (len(views), *shown.shape[2:]))
        return shown
