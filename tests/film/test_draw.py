import itertools

import numpy as np
import pytest

from sorl_fast.film.draw import FAILURE, GROUND, SUCCESS, Shot, fit, frames, strip
from sorl_fast.film.render import taken

TITLE = [
    "cube-single-play-singletask-task2-v0",
    "M = 5, N = 16, medoid:1/2: 2 of 3 episodes succeed",
]


def shot(episode, success, length, every=4, width=96):
    count = len(taken(length, every))
    grey = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.uint8(100)
    return Shot(episode, success, length, np.broadcast_to(grey, (count, width, width, 3)))


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(1, 1, [0, 1]), (8, 4, [0, 4, 8]), (9, 4, [0, 4, 8, 9]), (3, 10, [0, 3])],
)
def test_pictures_are_taken_first_last_and_every_k_steps(steps, every, expected):
    assert taken(steps, every) == expected


@pytest.mark.parametrize("width", [30, 96, 240, 1000])
@pytest.mark.parametrize("text", ["M", TITLE[1], "x" * 400, ""])
def test_words_are_never_wider_than_their_place(text, width):
    shown, font = fit(text, width)
    assert font.getlength(shown) <= width
    assert shown == text or (shown.endswith("...") and text.startswith(shown[:-3]))


def test_words_that_fit_are_not_cut():
    assert fit(TITLE[1], 300)[0] == TITLE[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
def test_a_film_is_as_long_as_its_longest_episode(count):
    shots = [shot(e, e % 2 == 0, 9 + 4 * e) for e in range(count)]
    made = list(frames(shots, 4, TITLE))
    assert len(made) == len(shots[-1].pictures)
    assert len({picture.size for picture in made}) == 1
    assert all(side % 2 == 0 for side in made[0].size)  # what H.264 asks for


def test_a_fate_is_in_its_colour_and_the_end_is_kept():
    shots = [shot(3, True, 9), shot(5, False, 21)]
    last = np.asarray(list(frames(shots, 4, TITLE))[-1])
    for one, column in zip(shots, (slice(0, 108), slice(112, 216)), strict=True):
        part = last[:, column].reshape(-1, 3)
        assert (part == one.colour).all(1).sum() > 50
        other = SUCCESS if one.colour == FAILURE else FAILURE
        assert not (part == other).all(1).any()
        assert (part == 100 + len(one.pictures) - 1).all(1).sum() == 96 * 96
    assert (last[0, 0] == GROUND).all()


def test_what_stands_in_a_picture_follows_from_the_episode(monkeypatch):
    written = []
    monkeypatch.setattr(
        "sorl_fast.film.draw._write", lambda draw, at, text, *_: written.append(text)
    )
    list(frames([shot(3, True, 9), shot(12, False, 4)], 4, TITLE))
    words = set(written)
    assert {*TITLE, "success at step 9", "failure: 4 steps", "episode 12, step 4"} <= words
    assert {w for w in words if w.startswith("episode 3,")} == {
        f"episode 3, step {s}" for s in (0, 4, 8, 9)
    }


def test_a_strip_has_a_line_an_episode_from_its_first_step_to_its_last():
    shots = [shot(3, True, 40), shot(5, False, 1)]
    made = np.asarray(strip(shots, 4, TITLE))
    greys = [
        int(v) - 100
        for v, _ in itertools.groupby(made[100, :, 0])
        if v >= 100 and len(set(made[100, made[100, :, 0] == v].ravel())) == 1
    ]
    assert greys == [0, 2, 5, 8, 10]
    assert (made == FAILURE).all(2).any()
    assert (made == SUCCESS).all(2).any()
