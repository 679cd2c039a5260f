import dataclasses

import numpy as np
import pytest

from mvg_jax.trajectory import ENVIRONMENT, MODEL, PAD, Ledger, LedgerError, Trajectories

IMAGE, E = 9, 3  # the placeholder, and how many of them one image takes


def build(pieces, *, prompts=((1, IMAGE, IMAGE, IMAGE, 2), (1, 2)), length=16, views=3) -> Trajectories:
    """Two rows a prompt. pieces: (origin, tokens of each row) in order; a row's views follow from its placeholders."""
    prompts_PxL = np.zeros((len(prompts), 6), np.int32)
    for p, ids in enumerate(prompts):
        prompts_PxL[p, : len(ids)] = ids
    prompt_length_P = np.array([len(ids) for ids in prompts], np.int32)
    rows = 2 * len(prompts)
    prompt_views = np.zeros((len(prompts), 1, 2, 2, 3), np.uint8)
    ledger = Ledger(prompts_PxL, prompt_length_P, rows, length, (views, 2, 2, 3), IMAGE, E)
    for turn, (origin, rows_of_ids) in enumerate(pieces):
        tokens = np.full((rows, 8), 5, np.int32)  # the padding of a piece is not its content
        for b, ids in enumerate(rows_of_ids):
            tokens[b, : len(ids)] = ids
        count_B = np.array([len(ids) for ids in rows_of_ids])
        drawn = np.full((rows, 8), -0.5, np.float32) if origin == MODEL else None
        ledger.append(np.arange(rows), tokens, count_B, origin, np.full(rows, turn), drawn)
        images_B = np.array([ids.count(IMAGE) // E for ids in rows_of_ids])
        values = 10 * np.arange(rows)[:, None] + 100 * turn + np.arange(2)[None] + 1
        ledger.append_views(
            np.arange(rows), np.broadcast_to(values[..., None, None, None], (rows, 2, 2, 2, 3)), images_B
        )
    return ledger.close(prompt_views)


SPAN = [IMAGE] * E
PIECES = [
    (MODEL, [[3, 4], [3], [3, 4, 4], []]),
    (ENVIRONMENT, [[5, *SPAN, 6], [5, 6], [*SPAN, *SPAN], []]),
    (MODEL, [[4, 4, 4], [4, 3], [], []]),
    (ENVIRONMENT, [[*SPAN], [], [], []]),
]


def test_pictures_of_rows():
    t = build(PIECES)
    assert [t.picture(row) for row in range(4)] == ["MMEIIIEMMMIII", "MEEMM", "MMMIIIIII", ""]


def test_ledger_keeps_what_was_appended():
    t = build(PIECES)
    assert t.group_size == 2
    assert t.tokens_BxL[0].tolist() == [3, 4, 5, 9, 9, 9, 6, 4, 4, 4, 9, 9, 9, 0, 0, 0]
    assert t.turn_BxL[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0]
    assert t.logprob_BxL[1].tolist() == [-0.5, 0, 0, -0.5, -0.5] + [0] * 11
    assert (t.origin_BxL[1] == [MODEL, ENVIRONMENT, ENVIRONMENT, MODEL, MODEL] + [PAD] * 11).all()
    assert t.view_count_B.tolist() == [2, 0, 2, 0]
    assert t.views_BxNxSxSx3[:, :, 0, 0, 0].tolist() == [[101, 45, 0], [0, 0, 0], [121, 122, 0], [0, 0, 0]]


def test_positions_go_on_where_each_rows_prompt_ends():
    t = build(PIECES)
    assert t.positions_BxL[:, 0].tolist() == [5, 5, 2, 2]
    assert (np.diff(t.positions_BxL, axis=1) == 1).all()


def test_image_slots_count_spans_in_order():
    t = build(PIECES)
    assert t.image_slot_BxL[0].tolist() == [-1] * 3 + [0] * 3 + [-1] * 4 + [1] * 3 + [-1] * 3
    assert t.image_slot_BxL[2].tolist() == [-1] * 3 + [0] * 3 + [1] * 3 + [-1] * 7


def test_loss_is_on_model_tokens_only():
    t = build(PIECES)
    assert t.loss_mask_BxL.sum(axis=1).tolist() == [5, 3, 3, 0]
    assert (t.loss_mask_BxL == (t.logprob_BxL < 0)).all()


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        ([(MODEL, [[3, *SPAN], [3], [3], [3]])], "placeholder of model origin"),
        ([(ENVIRONMENT, [[*SPAN, 5, IMAGE], [], [], []])], "differ in number"),
        ([(ENVIRONMENT, [[IMAGE, IMAGE, 5, *SPAN, IMAGE], [], [], []])], "partial image span"),
    ],
)
def test_broken_placeholders_are_refused(pieces, what):
    with pytest.raises(LedgerError, match=what):
        build(pieces)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ([1, IMAGE, IMAGE], "differ in number"),
        ([IMAGE, 1, IMAGE, IMAGE], "partial image span"),
        ([*SPAN, *SPAN], "a prompt with more image spans than images"),
    ],
)
def test_broken_prompts_are_refused(prompt, what):
    with pytest.raises(LedgerError, match=what):
        build(PIECES, prompts=(prompt, [1]))


def _with(name, index, value):
    t = build(PIECES)
    changed = getattr(t, name).copy()
    changed[index] = value
    return lambda: dataclasses.replace(t, **{name: changed})


@pytest.mark.parametrize(
    ("name", "index", "value", "what"),
    [
        ("origin_BxL", (0, 1), PAD, "origin must name every token"),
        ("origin_BxL", (1, 9), ENVIRONMENT, "nothing after it"),
        ("length_B", 0, 12, "origin must name every token"),
        ("view_count_B", 0, 1, "differ in number"),
        ("view_count_B", 1, 1, "differ in number"),
        ("tokens_BxL", (0, 4), 5, "differ in number"),
        ("logprob_BxL", (0, 2), -0.1, "did not draw"),
        ("logprob_BxL", (0, 15), -0.1, "did not draw"),
        ("logprob_BxL", (0, 0), 0.1, "above 0"),
        ("logprob_BxL", (0, 0), -np.inf, "not finite"),
        ("logprob_BxL", (0, 0), np.nan, "not finite"),
    ],
)
def test_broken_ledgers_are_refused(name, index, value, what):
    with pytest.raises(LedgerError, match=what):
        _with(name, index, value)()


def test_rows_must_be_shared_evenly():
    t = build(PIECES)
    with pytest.raises(LedgerError, match="4 rows cannot be shared among 3 prompts"):
        dataclasses.replace(
            t,
            prompts_PxL=t.prompts_PxL[[0, 0, 0]],
            prompt_length_P=t.prompt_length_P[[0, 0, 0]],
            prompt_views_PxNxSxSx3=t.prompt_views_PxNxSxSx3[[0, 0, 0]],
        )


def test_missing_views_are_refused():
    t = build(PIECES)
    with pytest.raises(LedgerError, match="a row with more image spans than images"):
        dataclasses.replace(t, views_BxNxSxSx3=t.views_BxNxSxSx3[:, :1])


def test_rows_do_not_outgrow_the_ledger():
    with pytest.raises(LedgerError, match="12 tokens"):
        build(PIECES, length=12)
    with pytest.raises(LedgerError, match="1 views"):
        build(PIECES, views=1)
    assert build(PIECES, length=13, views=2).length_B.max() == 13
