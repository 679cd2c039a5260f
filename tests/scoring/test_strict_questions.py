"""The strict scorer by answer type: what is right, what never pays, and what holds for any question."""

import random

import pytest

from mvg_jax.scoring.question import ANSWER_TYPES, BOX, CHOICE, CLOSED, LIST, NUMBER, OPEN, YES_NO, Question
from mvg_jax.scoring.strict import score, score_question

ORGANS = ("liver", "spleen", "left kidney", "right kidney")
BOX_GOLD = "[100, 100, 300, 300]"


def right(answer, gold, answer_type=OPEN, options=(), **more):
    return score_question(Question("folder", answer_type, "", "q", gold, options, **more), answer)


RIGHT = [
    ("yes", "Yes", YES_NO, ()),
    ("B", "B", CHOICE, ORGANS),
    ("b) spleen", "B", CHOICE, ORGANS),
    ("Spleen.", "B", CHOICE, ORGANS),
    ("the answer is (B)", "B", CHOICE, ORGANS),
    ("Option B", "B", CHOICE, ORGANS),
    ("\\boxed{B}", "B", CHOICE, ORGANS),
    ("No, it is clear", "B", CHOICE, ("Yes", "No")),
    ("spleen", "spleen", CLOSED, ORGANS),
    ("B", "spleen", CLOSED, ORGANS),
    ("MRI", "mri", CLOSED, ()),
    ("heart, lung", "Lung, Heart", LIST, ()),
    ("the lung and the heart", "Lung, Heart", LIST, ()),
    ("肺、心脏", "心脏，肺", LIST, ()),
    ("lung", "Lung", LIST, ()),
    ("it is calcified", "it is calcified", OPEN, ()),
    ("?", "?", OPEN, ()),
    ("12 millimetres", "12 mm", NUMBER, ()),
    ("40 Hounsfield units", "40 HU", NUMBER, ()),
    ("four", "4", NUMBER, ()),
    (BOX_GOLD, BOX_GOLD, BOX, ()),
    ("(100.0,100,300,299.5).", BOX_GOLD, BOX, ()),
    ("100, 100, 300, 300", BOX_GOLD, BOX, ()),
    ("The answer is [100, 100, 300, 200]", BOX_GOLD, BOX, ()),
    ("[0, 0, 1000, 1000]", "[0, 0, 1000, 500]", BOX, ()),
]

WRONG = [
    ("C", "B", CHOICE, ORGANS),
    ("B, C", "B", CHOICE, ORGANS),
    ("B or C", "B", CHOICE, ORGANS),
    ("B. liver", "B", CHOICE, ORGANS),
    ("not B", "B", CHOICE, ORGANS),
    ("kidney", "C", CHOICE, ORGANS),
    ("E", "B", CHOICE, ORGANS),
    ("", "B", CHOICE, ORGANS),
    ("yes", "B", CHOICE, ("Yes", "No")),
    ("lung", "Lung, Heart", LIST, ()),
    ("lung, heart, liver", "Lung, Heart", LIST, ()),
    ("no lung, heart", "Lung, Heart", LIST, ()),
    (", and ;", "and", LIST, ()),
    ("12 mm or 13 mm", "12 mm", NUMBER, ()),
    ("10-14 mm", "12 mm", NUMBER, ()),
    ("12", "12 mm", NUMBER, ()),
    ("12 cm", "12 mm", NUMBER, ()),
    ("1e9999", "12 mm", NUMBER, ()),
    ("9" * 190, "12 mm", NUMBER, ()),
    ("[100, 100, 300, 199]", BOX_GOLD, BOX, ()),
    ("[300, 300, 100, 100]", BOX_GOLD, BOX, ()),
    ("[100, 100, 300, 300], [0, 0, 10, 10]", BOX_GOLD, BOX, ()),
    ("[[100, 100, 300, 300]]", BOX_GOLD, BOX, ()),
    ("[100, 100, 300]", BOX_GOLD, BOX, ()),
    ("[100, 100, 300, nan]", BOX_GOLD, BOX, ()),
    ("[0, 0, 1001, 1001]", "[0, 0, 1000, 1000]", BOX, ()),
    ("[-100, 100, 300, 300]", BOX_GOLD, BOX, ()),
    ("[0, 0, 1000, 1000]", BOX_GOLD, BOX, ()),
    ("", "", OPEN, ()),
    ("normal", "No", YES_NO, ()),
    ("yes, no", "Yes", YES_NO, ()),
]


@pytest.mark.parametrize(("answer", "gold", "answer_type", "options"), RIGHT)
def test_right(answer, gold, answer_type, options):
    assert right(answer, gold, answer_type, options) == 1.0


@pytest.mark.parametrize(("answer", "gold", "answer_type", "options"), WRONG)
def test_wrong(answer, gold, answer_type, options):
    assert right(answer, gold, answer_type, options) == 0.0


def test_no_answer_is_wrong_for_every_type():
    golds = {YES_NO: "yes", CLOSED: "liver", CHOICE: "A", NUMBER: "3 mm", BOX: BOX_GOLD}
    for answer_type in ANSWER_TYPES:
        for answer in (None, "", "   ", "\u200b", ".", "x" * 10_000):
            options = ORGANS if answer_type in (CLOSED, CHOICE) else ()
            assert right(answer, golds.get(answer_type, "lung"), answer_type, options) == 0.0


@pytest.mark.parametrize(
    ("answer", "passes"),
    [("20 mm", 1), ("22 mm", 1), ("2.2 cm", 1), ("18 mm", 1), ("22.1 mm", 0), ("17.9 mm", 0), ("21", 0), ("-20 mm", 0)],
)
def test_a_question_may_carry_a_tolerance(answer, passes):
    assert right(answer, "20 mm", NUMBER, tolerance=0.1) == passes
    assert right("21 mm", "20 mm", NUMBER) == 0.0
    assert right(answer, "5 mm", NUMBER, tolerance=0.1, accepted=("20 mm",)) == passes


def test_any_accepted_answer_is_right_also_one_outside_the_options():
    assert right("X-ray", "radiograph", accepted=("plain film", "x ray")) == 1.0
    assert right("CT", "radiograph", accepted=("plain film", "x ray")) == 0.0
    assert right("hepatic", "liver", CLOSED, ORGANS, accepted=("hepatic",)) == 1.0
    assert right("spleen", "liver", CLOSED, ORGANS, accepted=("B",)) == 1.0
    assert right("C", "B", CHOICE, ORGANS, accepted=("C",)) == 1.0
    assert right("liver, hepatic", "liver", accepted=("hepatic",)) == 0.0


def test_a_letter_is_a_letter_even_where_texts_are_letters():
    letters = ("B", "A", "D", "F")
    assert right("B", "B", CHOICE, letters) == 1.0
    assert right("B", "A", CHOICE, letters) == 0.0
    assert right("A. B", "A", CHOICE, letters) == 1.0
    assert right("F", "D", CHOICE, letters) == 1.0  # no such letter among the options, so it is the text
    assert score("B", "B", letters) == score("A", "B", ("X", "B")) + 1.0  # without letters shown, the text


def test_repeated_texts_are_told_apart_by_letter_only():
    for answer, passes in (("A", 1), ("A. cyst", 1), ("cyst", 0), ("B", 0), ("mass", 0)):
        assert right(answer, "A", CHOICE, ("cyst", "Cyst", "mass")) == passes


@pytest.mark.parametrize(
    ("answer", "gold", "passes"),
    [
        ("是", "是的", 1),
        ("有。", "包含", 1),
        ("yes", "是", 1),
        ("没有", "不是", 1),
        ("正常", "正常", 1),
        ("正常", "是", 0),
    ]
    + [("不是", "是", 0), ("是, 不是", "是", 0), ("不正常", "正常", 0), ("没有肿块", "没有", 0), ("肝脏", "肝脏", 1)],
)
def test_chinese_words_for_yes_and_no(answer, gold, passes):
    assert right(answer, gold, CLOSED, language="zh") == passes


def test_the_words_count_in_chinese_questions_only():
    assert right("是", "是的", CLOSED) == 0.0


def test_bad_gold_answers_are_errors_in_the_data():
    for gold, answer_type, options in (
        ("E", CHOICE, ORGANS),
        ("liver", CHOICE, ORGANS),
        ("A", CHOICE, ()),
        ("somewhere", BOX, ()),
        ("[3, 3, 1, 1]", BOX, ()),
        ("lung", CLOSED, ORGANS),
        ("x", "essay", ()),
    ):
        with pytest.raises(ValueError, match=r"gold answer|answer type"):
            right("A", gold, answer_type, options)


# What holds for any question. Words as golds have them: articles, sides, signs, units, lead-ins, both scripts.
WORDS = (
    "left right lung lobe no yes not a the an and or T2 T2+ x-ray 3 2.5 cm 12 mm -5 HU 50% < > , ; . ( ) : it is this "
    "answer: option B C 肝脏 、 是 without both bilateral I II"
).split(" ")


def texts(rng, count):
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(count)]


def drawn_questions(count=400):
    rng = random.Random(0)
    for _ in range(count):
        options = tuple(texts(rng, 4))
        yield rng, options


def test_gold_is_always_right_for_itself():
    for rng, options in drawn_questions():
        gold = options[0]
        for answer_type in (OPEN, CLOSED, NUMBER, LIST, YES_NO):
            assert right(gold, gold, answer_type) == 1.0, (gold, answer_type)
        assert right(gold.upper() + "  ", gold, OPEN) == 1.0 or "no" in gold.lower() or "yes" in gold.lower(), gold
        letter = rng.choice("ABCD")
        assert right(letter, letter, CHOICE, options) == 1.0
        numbers = sorted(rng.sample(range(1001), 4))
        box = [numbers[0], numbers[1], numbers[2] + (numbers[2] == numbers[0]), numbers[3]]
        assert right(str(box), str(box), BOX) == 1.0


def test_an_answer_is_right_for_one_option_at_most():
    for rng, options in drawn_questions():
        for answer in (*options, *"ABCDE", ", ".join(options), " or ".join(options[:2]), *texts(rng, 3)):
            assert sum(right(answer, letter, CHOICE, options) for letter in "ABCD") <= 1.0, (answer, options)


def test_naming_several_never_passes():
    for rng, organs in ((random.Random(seed), list(ORGANS)) for seed in range(200)):
        rng.shuffle(organs)
        said = organs[: rng.randint(2, 4)]
        for joint in (", ", " or ", " and ", "/", " ", "; ", " and/or ", "\n"):
            for answer in (joint.join(said), joint.join("ABCD"[: len(said)])):
                for i, gold in enumerate(ORGANS):
                    assert right(answer, "ABCD"[i], CHOICE, ORGANS) == 0.0
                    assert right(answer, gold, CLOSED, ORGANS) == 0.0
                    assert right(answer, gold, OPEN) == 0.0
        both = rng.choice((", ", " or ", " and ", " ", "/", "; ")).join(rng.sample(("left", "right"), 2))
        assert right(both, "left") == right(both, "right") == right(both, "left", CLOSED, ("left", "right")) == 0.0
        both = rng.choice((", ", " or ", " and ", " ", "/", "; ")).join(rng.sample(("yes", "no"), 2))
        assert right(both, "yes", YES_NO) == right(both, "no", YES_NO) == 0.0


ATTACKS = (
    "normal", "abnormal", "unknown", "cannot tell", "diagnosis", "nodule", "no yes", "yes/no", "yesno", "maybe", "n/a", "none",
    "A B C D", "ABCD", "A, B, C, D", "A/B/C/D", "(A)(B)(C)(D)", "any of them", "all of the above", "both", "either",
    "left right", "left or right", "left and/or right", "bilateral", "left, right, bilateral",
    "liver spleen left kidney right kidney", "liver, spleen, left kidney, right kidney", "kidney", "the organ", "l", "liv",
    "1 2 3 4 5 6 7 8 9", "1, 2, 3", "1-9", "0 to 100 mm", "nan", "inf", "-", "*", ".*", "%s", "mm", "3 mm 4 mm", "±5 mm",
    "[0, 0, 1000, 1000]", "[0, 0, 0, 0]", "[nan, nan, nan, nan]", "[1e400, 0, 1, 1]", "[]", "{}", "null", "None", "True",
    "correct", "the correct answer", "the answer is the answer", "gold", "same as above", "see image", "<answer>",
    "</answer><answer>", "\\boxed{}", "\\boxed{A}\\boxed{B}", "\x00", "\u202e", "answer: ", "option", "yes " * 40, "a" * 199,
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_answers_that_know_nothing_earn_nothing(attack):
    for gold, answer_type, options in (
        ("yes", YES_NO, ()),
        ("no", YES_NO, ()),
        ("spleen", CLOSED, ORGANS),
        ("B", CHOICE, ORGANS),
        ("right lung", OPEN, ()),
        ("12.5 mm", NUMBER, ()),
        ("7", NUMBER, ()),
        ("lung, heart", LIST, ()),
        (BOX_GOLD, BOX, ()),
    ):
        assert right(attack, gold, answer_type, options, tolerance=0.1) == 0.0
