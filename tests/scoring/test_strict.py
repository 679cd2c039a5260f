"""The strict scorer, rule by rule, and against the ways of being paid for nothing."""

import pytest

from mvg_jax.scoring.strict import normalise, score

OPTIONS = ("homogeneous", "rim-enhancing", "calcified", "septated")
SIDES = ("left", "right")
NUMBERS = ("1", "2", "3")

RIGHT = [
    ("yes", "Yes", ()),
    ("Yes.", "yes", ()),
    ("ｙｅｓ", "yes", ()),
    ("No, the lungs are clear", "No", ()),
    ("No, it is normal", "no", ()),
    ("The answer is yes", "Yes", ()),
    ("yes", "yes", ("yes", "no")),
    ("B", "no", ("yes", "no")),
    ("No, it is clear", "B", ("yes", "no")),
    ("calcified", "calcified", OPTIONS),
    ("Calcified.", "calcified", OPTIONS),
    ("C", "calcified", OPTIONS),
    ("(c)", "calcified", OPTIONS),
    ("C)", "calcified", OPTIONS),
    ("C. calcified", "calcified", OPTIONS),
    ("calcified", "C", OPTIONS),
    ("rim enhancing", "rim-enhancing", OPTIONS),
    ("The answer is: C", "calcified", OPTIONS),
    ("It is calcified", "calcified", OPTIONS),
    ("a calcified", "calcified", OPTIONS),
    ("two", "2", NUMBERS),
    ("the left", "left", SIDES),
    ("Right lung.", "right lung", ()),
    ("the Right Lung", "right lung", ()),
    ("x ray", "X-ray", ()),
    ("spleen and liver", "liver, spleen", ()),
    ("Left and Right", "right and left", ()),
    ("hepatitis A", "hepatitis a", ()),
    ("three", "3", ()),
    ("2.5 cm", "25 mm", ()),
    ("2.53cm", "2.5 cm", ()),
    ("-5 HU", "−5 HU", ()),
    ("1,200 ml", "1200 mL", ()),
    ("50 %", "50%", ()),
    ("肝脏", "肝脏", ()),
    ("liv\u200ber", "liver", ()),
]

WRONG = [
    (None, "yes", ()),
    ("", "yes", ()),
    ("   .", "yes", ()),
    ("normal", "no", ()),
    ("abnormal", "no", ()),
    ("a nodule is seen", "no", ()),
    ("unknown", "no", ()),
    ("I cannot tell", "no", ()),
    ("diagnosis", "no", ()),
    ("yes no", "yes", ()),
    ("yes, no", "yes", ()),
    ("no, yes", "no", ()),
    ("yes or no", "yes", ()),
    ("yes and yes", "yes", ()),
    ("yes, no effusion", "yes", ()),
    ("no evidence of normal", "no", ()),
    ("no evidence of pneumonia", "no", ()),
    ("not yes", "yes", ()),
    ("yes, " + "it is so " * 6, "yes", ()),
    ("calcified, septated", "calcified", OPTIONS),
    ("calcified or septated", "calcified", OPTIONS),
    ("homogeneous, rim-enhancing, calcified, septated", "calcified", OPTIONS),
    ("not calcified", "calcified", OPTIONS),
    ("non-calcified", "calcified", OPTIONS),
    ("uncalcified", "calcified", OPTIONS),
    ("A", "calcified", OPTIONS),
    ("a", "calcified", OPTIONS),
    ("A, C", "calcified", OPTIONS),
    ("C D", "calcified", OPTIONS),
    ("D. calcified", "calcified", OPTIONS),
    ("C. septated", "calcified", OPTIONS),
    ("E", "calcified", OPTIONS),
    ("саlcified", "calcified", OPTIONS),  # Cyrillic look-alikes
    ("calcified " * 30, "calcified", OPTIONS),
    ("1 or 2", "2", NUMBERS),
    ("12", "2", NUMBERS),
    ("1, 2, 3", "2", NUMBERS),
    ("right", "left", SIDES),
    ("left right", "left", SIDES),
    ("left and right", "left", SIDES),
    ("not left", "left", SIDES),
    ("left lung", "right lung", ()),
    ("left lower lobe", "left upper lobe", ()),
    ("right or left lung", "right lung", ()),
    ("right and left lung", "right lung", ()),
    ("right lung, left lung", "right lung", ()),
    ("lung", "right lung", ()),
    ("hepatitis", "hepatitis a", ()),
    ("asymmetric", "symmetric", ()),
    ("4", "3", ()),
    ("3.4", "3", ()),
    ("2.5 mm", "2.5 cm", ()),
    ("2.5", "2.5 cm", ()),
    ("2.6 cm", "2.5 cm", ()),
    ("5 HU", "-5 HU", ()),
    (">5 mm", "<5 mm", ()),
    ("T2", "T2+", ()),
    ("x" * 5000, "x", ()),
]


@pytest.mark.parametrize(("answer", "gold", "options"), RIGHT)
def test_right(answer, gold, options):
    assert score(answer, gold, options) == 1.0


@pytest.mark.parametrize(("answer", "gold", "options"), WRONG)
def test_wrong(answer, gold, options):
    assert score(answer, gold, options) == 0.0


@pytest.mark.parametrize(
    "options", [OPTIONS, SIDES, NUMBERS, ("yes", "no"), ("hepatitis A", "hepatitis B", "hepatitis")]
)
def test_every_option_is_right_for_itself_only(options):
    for i, gold in enumerate(options):
        for j, answer in enumerate(options):
            assert score(answer, gold, options) == float(i == j)
            assert score("ABCDE"[j], gold, options) == float(i == j)


def test_options_that_read_the_same_are_told_apart_by_letter_only():
    options = ("T1 image", "t1-image")
    assert score("t1 image", "A", options) == 0.0
    assert score("A", "A", options) == 1.0


def test_gold_outside_the_options_is_an_error_in_the_data():
    with pytest.raises(ValueError, match="none of the options"):
        score("calcified", "cystic", OPTIONS)


def test_long_options_allow_long_answers():
    long = "a mass with irregular margins " * 10
    assert score(long, "B", ("cyst", long)) == 1.0


def test_normalise():
    assert normalise("The  Rim-Enhancing, lesion!") == "rim enhancing lesion"
    assert normalise("A") == "a"
    assert normalise("<answer>3mm</answer>") == "< answer > 3 mm < answer >"
