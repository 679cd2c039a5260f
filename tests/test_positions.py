import jax
import numpy as np
import pytest

from mvg_jax.positions import token_positions

IMAGE = 9
SPAN = [IMAGE] * 6  # a grid of 2 x 3
GRID = np.array([[[2, 3]]])


def positions(ids, *, start=0, count=None, grids=GRID):
    count = len(ids) if count is None else count
    found = token_positions(np.array([ids]), np.array([count]), np.array([start]), IMAGE, grids)
    return found[0][0].T.tolist(), int(found[1][0])


def test_without_grids_every_token_counts():
    assert positions([1, *SPAN, 2], start=4, count=7, grids=None) == (list(range(4, 12)), 11)


def test_an_image_lies_on_its_grid_and_text_goes_on_after_its_longer_side():
    assert positions([1, 2, *SPAN, 3, 4], start=10) == (
        [
            [10, 11, 12, 12, 12, 12, 12, 12, 15, 16],
            [10, 11, 12, 12, 12, 13, 13, 13, 15, 16],
            [10, 11, 12, 13, 14, 12, 13, 14, 15, 16],
        ],
        17,
    )


def test_images_side_by_side_are_two_images():
    time, *_ = positions([*SPAN, *SPAN, 1])[0]
    assert time == [0] * 6 + [3] * 6 + [6]


def test_each_image_has_its_own_grid_and_the_last_goes_on():
    grids = np.array([[[3, 1], [1, 2]]])
    three = [*[IMAGE] * 3, *[IMAGE] * 2, 1, *[IMAGE] * 2, 1]
    assert positions(three, grids=grids)[0] == [
        [0, 0, 0, 3, 3, 5, 6, 6, 8],
        [0, 1, 2, 3, 3, 5, 6, 6, 8],
        [0, 0, 0, 3, 4, 5, 6, 7, 8],
    ]


def test_padding_moves_nothing_on():
    assert positions([1, *SPAN, 5, 5], count=7)[1] == 4
    assert positions([1, *SPAN, *SPAN], count=7)[1] == 4
    assert positions([1, 2], count=0, start=8)[1] == 8


@pytest.mark.parametrize("grids", [None, GRID, np.array([[[1, 4], [3, 2]]] * 3)])
def test_a_conversation_in_pieces_has_the_positions_of_the_whole_on_host_and_device(grids):
    first = SPAN if grids is None or len(grids) == 1 else [IMAGE] * 4
    pieces = [[1, 2, *first, 3], [4], [5, *SPAN, *SPAN, 6, 7], [], [*SPAN]]
    whole = [token for piece in pieces for token in piece]
    rows = np.array([whole, whole, [7] * len(whole)])
    count, zero = np.full(3, len(whole)), np.zeros(3, np.int32)
    expected, after = token_positions(rows, count, zero, IMAGE, grids)
    on_device = jax.jit(lambda tokens, count, start: token_positions(tokens, count, start, IMAGE, grids))(
        rows, count, zero
    )
    np.testing.assert_array_equal(on_device[0], expected)
    np.testing.assert_array_equal(on_device[1], after)
    if grids is None or len(grids) == 1:
        found, start = [], zero[:1]
        for piece in pieces:
            padded = np.array([[*piece, *[IMAGE] * (20 - len(piece))]])
            part, start = token_positions(padded, np.array([len(piece)]), start, IMAGE, grids)
            found.append(part[:, : len(piece)])
        np.testing.assert_array_equal(np.concatenate(found, axis=1), expected[:1])
        assert start == after[0]
