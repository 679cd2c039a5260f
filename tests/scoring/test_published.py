"""The public evaluators: what their published rules do, each known bug by its name."""

import math

import pytest

from mvg_jax.scoring import PROTOCOLS, llava_med, medevalkit
from mvg_jax.scoring.overlap import bleu, rouge_l, rouge_n
from mvg_jax.scoring.question import CHOICE, CLOSED, DRAWN, OPEN, RAISED, YES_NO, Question, mean_scores

CELLS = ("Hepatocyte", "Kupffer cell", "Stellate cell", "Cholangiocyte")


def scores(protocol, response, gold, answer_type=OPEN, options=(), dataset="vqa_rad", **more):
    return PROTOCOLS[protocol].score(Question(dataset, answer_type, "", "q", gold, options, **more), response)


def accuracy(*arguments, **more):
    return scores(*arguments, **more)["accuracy"]


def choice(protocol, response, gold, options=CELLS, dataset="mmmu"):
    return scores(protocol, response, gold, CHOICE, options, dataset)


# MedEvalKit


def test_medevalkit_finds_no_inside_other_words():
    for word in ("normal", "a nodule is seen", "diagnosis", "unknown", "I cannot tell"):
        assert accuracy("medevalkit", word, "No", YES_NO) == 1.0
    assert accuracy("medevalkit", "abnormal", "Yes", YES_NO) == 0.0
    assert accuracy("medevalkit", "yes and no", "yes", YES_NO) == 0.0


def test_medevalkit_slake_closed_is_equality_because_golds_are_capitalised():
    assert accuracy("medevalkit", "yes.\n", "Yes", YES_NO, dataset="slake") == 1.0
    assert accuracy("medevalkit", "Yes, it is", "Yes", YES_NO, dataset="slake") == 0.0
    assert accuracy("medevalkit", " Yes", "Yes", YES_NO, dataset="slake") == 0.0
    assert accuracy("medevalkit", "Yes, it is", "yes", YES_NO, dataset="slake") == 1.0


def test_medevalkit_exact_match_keeps_periods_articles_and_the_blank_after_a_marker():
    assert accuracy("medevalkit", "right lung", "Right lung") == 1.0
    for answer in ("Right lung.", "the right lung", "Answer: right lung"):
        assert accuracy("medevalkit", answer, "Right lung") == 0.0


def test_medevalkit_reports_f1_as_precision_precision_as_recall_and_recall_as_f1():
    figures = scores("medevalkit", "the big right lung", "Right lung")
    assert figures["f1"] == 1.0  # the recall
    assert figures["recall"] == 0.5  # the precision
    assert figures["precision"] == pytest.approx(2 / 3)  # F1


@pytest.mark.parametrize("response", ["", "...", "  ", "answer is", "<think>x</think>answer:"])
def test_medevalkit_raises_for_an_answer_without_words(response):
    figures = scores("medevalkit", response, "lung")
    assert figures[RAISED] == 1.0
    assert figures["accuracy"] == 0.0


def test_medevalkit_boxed_without_braces_reads_as_none():
    assert accuracy("medevalkit", "the boxed area: left", "left", CLOSED) == 0.0
    assert accuracy("medevalkit", "\\boxed{the {left} lung}", "the {left} lung") == 1.0
    assert medevalkit.boxed("\\boxed{a} \\boxed{b") == "None"
    assert medevalkit.boxed("\\boxed{a} \\boxed{b}") == "b"


def test_medevalkit_vqa_rad_closed_choices_count_as_open():
    assert scores("medevalkit", "Left", "left", CLOSED)["exact_match"] == 1.0
    assert "exact_match" not in scores("medevalkit", "Yes", "yes", CLOSED)


def test_medevalkit_takes_the_most_similar_choice_and_a_for_nothing():
    kinds = ("Axial CT", "Sagittal MRI", "Chest X-ray", "Ultrasound")
    for dataset in ("pmc_vqa", "medxpertqa"):
        assert choice("medevalkit", "chest x ray", "C", kinds, dataset)["accuracy"] == 1.0
        assert choice("medevalkit", "", "A", kinds, dataset)["accuracy"] == 1.0
        assert choice("medevalkit", "I think it is C", "C", kinds, dataset)["accuracy"] == 0.0
        assert choice("medevalkit", "B\n\nIt is not C", "B", kinds, dataset)["accuracy"] == 1.0
        assert choice("medevalkit", "So, reasoning.\n\nC. Chest X-ray", "C", kinds, dataset)["accuracy"] == 1.0


def test_medevalkit_reads_answer_tags_of_choices_only_in_two_sets():
    tagged = "I would not say A\n\n<answer>B</answer>"
    assert choice("medevalkit", tagged, "B", dataset="omnimedvqa")["accuracy"] == 1.0
    assert medevalkit.tagged("<a>x</a> and <a>y</a>", "a") == "x y"
    assert medevalkit.tagged("<a></a>", "a") == "<a></a>"
    assert medevalkit.tagged("<a>x", "a") == "<a>x"


def test_medevalkit_mmmu_open_is_compared_character_by_character():
    assert accuracy("medevalkit", "8", "8", dataset="mmmu") == 0.0
    assert choice("medevalkit", "<answer>\\boxed{C}</answer>", "C")["accuracy"] == 1.0


def test_medevalkit_aggregates_over_questions_and_never_above_1():
    rows = [
        scores("medevalkit", "yes", "yes", YES_NO),
        scores("medevalkit", "no", "yes", YES_NO),
        scores("medevalkit", "left", "left"),
        scores("medevalkit", "lung", "left"),
    ]
    figures = PROTOCOLS["medevalkit"].aggregate(rows)
    assert figures["accuracy"] == figures["closed_accuracy"] == figures["open_accuracy"] == 0.5
    assert figures["exact_match"] == 0.5  # of the two open ones
    assert mean_scores([]) == {}


def test_medevalkit_judge_says_0_for_correct_and_judges_open_questions_only():
    asked = []

    def judge(question, gold, answer):
        asked.append((question, gold, answer))
        return "<think>the same</think><judge>0</judge>" if answer == "the left" else "<judge>1</judge>"

    protocol = medevalkit.judged(judge)
    assert protocol.name == "medevalkit_judged"
    right = protocol.score(Question("vqa_rad", OPEN, "", "q", "Left"), "<answer>The left</answer>")
    assert right["accuracy"] == 1.0
    assert right["exact_match"] == 0.0
    assert asked == [("q", "left", "the left")]
    assert protocol.score(Question("vqa_rad", OPEN, "", "q", "left"), "left")["accuracy"] == 0.0
    assert protocol.score(Question("vqa_rad", YES_NO, "", "q", "yes"), "yes")["accuracy"] == 1.0
    assert len(asked) == 2


# lmms-eval


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("Yeah!", "yes", 1),
        ("No (normal)", "No", 1),
        ("没有（图中）。", "否", 1),
        ("X-ray", "xray", 1),
        ("Lung Heart", "Lung, Heart", 1),
        ("Heart, Lung", "Lung, Heart", 0),
        ("the liver", "Liver", 0),
        ("是", "正常", 1),  # a bug: normal counts as yes
        ("", "", 1),
    ],
)
def test_lmms_eval_slake(response, gold, right):
    figures = scores("lmms_eval", response, gold, dataset="slake")
    assert figures == {"accuracy": right, "open_accuracy": right}
    assert "closed_accuracy" in scores("lmms_eval", response, gold, CLOSED, dataset="slake")


def test_lmms_eval_finds_letters_at_the_end_of_words_and_before_periods():
    assert choice("lmms_eval", "AND no more", "D")["accuracy"] == 1.0
    assert choice("mmmu", "AND no more", "D")[DRAWN] == 1.0
    assert choice("lmms_eval", "B.Kupffer", "B") == {"accuracy": 1.0, DRAWN: 0.0}
    assert choice("mmmu", "B.Kupffer", "B")[DRAWN] == 1.0


def test_lmms_eval_mmmu_open_is_always_wrong():
    for response, gold in (("8", "8"), ("mitral valve", "mitral valve"), ("x", "x")):
        assert accuracy("lmms_eval", response, gold, dataset="mmmu") == 0.0


# MMMU


@pytest.mark.parametrize(
    "response", ["b", "B:Kupffer", "B) Kupffer", "<answer>B</answer>", "\\boxed{B}", "Kupffer cell", ""]
)
def test_mmmu_draws_what_it_cannot_read_the_same_for_the_same_question(response):
    first = choice("mmmu", response, "B")
    assert first[DRAWN] == 1.0
    assert first == choice("mmmu", response, "B")
    draws = [
        PROTOCOLS["mmmu"].score(Question("mmmu", CHOICE, "", "q", "B", CELLS, id=str(i)), response)["accuracy"]
        for i in range(400)
    ]
    assert sum(draws) / len(draws) == pytest.approx(0.25, abs=0.07)


def test_mmmu_takes_any_capital_that_stands_alone_and_the_last_of_several():
    assert choice("mmmu", "VITAMIN A DEFICIENCY IS MOST LIKELY", "A") == {"accuracy": 1.0, DRAWN: 0.0}
    assert choice("mmmu", "A or B? I choose B", "B")["accuracy"] == 1.0
    assert choice("mmmu", "(A) is tempting but (D), not B", "D")["accuracy"] == 1.0
    assert choice("mmmu", "not a hepatocyte, it is a kupffer cell", "B")["accuracy"] == 1.0
    assert choice("mmmu", "?.,B,.?", "B")[DRAWN] == 1.0  # each mark is stripped once, in order
    assert choice("mmmu", ".,B,.", "B")[DRAWN] == 1.0
    assert choice("mmmu", ",.B.,", "B")["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("approximately 3.14159", "3.14", 1),
        ("The structure is the mitral valve.", "Mitral Valve", 1),
        ("valve", "mitral valve", 0),
        ("between 3 and 5", "5", 1),
        ("between 3 and 5", "3", 1),
        ("p = 0.05", "0.05", 1),
        ("p = 0.05\nnothing more", "0.05", 1),  # no announcement: the whole text counts
        ("It is 4\nso the result is 1,234", "1234", 1),
        ("It is 4. So it is 5", "4", 0),  # the text is lower case before it is split at capitals
        ("2e-1", "0.2", 1),
        ("x", "x", 1),
        ("ox ax", "x", 1),  # one character needs a blank on one side only
        ("axe", "x", 0),
        ("the answer is:", "", 1),
    ],
)
def test_mmmu_open(response, gold, right):
    assert scores("mmmu", response, gold, dataset="mmmu") == {"accuracy": right, DRAWN: 0.0}


def test_mmmu_open_accepts_any_of_several():
    assert accuracy("mmmu", "24/7", "3.429", dataset="mmmu", accepted=("24/7",)) == 1.0


# VLMEvalKit


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("(B)", "B", 1),
        ("B: Kupffer cell", "B", 1),
        ("B or not, one two three four five six seven eight nine ten eleven", "B", 0),  # not near the end
        ("The correct answer is **b**, one two three four five six seven eight", "B", 1),
        ("A or B", "B", 0),
        ("b", "B", 0),
        ("not the kupffer cell", "B", 1),
        ("kupffer", "B", 0),
        ("Z", "Z", 1),
        ("Cannot determine the answer: B", "B", 0),
        ("Failed to obtain answer via API B", "B", 0),
        ("kupffer cell " + "or so " * 30, "B", 0),  # longer than twice the options
    ],
)
def test_vlmevalkit(response, gold, right):
    assert choice("vlmevalkit", response, gold) == {"accuracy": right}


def test_vlmevalkit_reads_only_a_to_d_after_answer_is():
    five = (*CELLS, "Pit cell")
    words = ", for reasons that go on and on and on"
    assert choice("vlmevalkit", "The answer is **D**" + words, "D", five)["accuracy"] == 1.0
    assert choice("vlmevalkit", "The answer is **E**" + words, "E", five)["accuracy"] == 0.0


def test_vlmevalkit_open_mmmu_becomes_a_choice_that_a_capital_gold_breaks():
    assert accuracy("vlmevalkit", "2", "2", dataset="mmmu") == 1.0
    assert accuracy("vlmevalkit", "A", "2", dataset="mmmu") == 1.0
    assert accuracy("vlmevalkit", "B", "B", dataset="mmmu") == 1.0
    assert accuracy("vlmevalkit", "other answers", "B", dataset="mmmu") == 1.0
    assert accuracy("vlmevalkit", "C", "C", dataset="mmmu") == 0.0


# LLaVA-Med


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("normal", "No", 1),
        ("yes and no", "yes", 1),
        ("MRI", "MRI", 0),
        ("abnormal", "Abnormal", 1),
        ("no MRI", "MRI", 1),
    ],
)
def test_llava_med_closed_wants_yes_or_no_inside(response, gold, right):
    assert scores("llava_med", response, gold, CLOSED) == {"accuracy": right, "closed_accuracy": right}


def test_llava_med_open_headline_is_recall_that_any_vocabulary_earns():
    figures = scores("llava_med", "left right upper lower lung heart", "Right lung")
    assert figures["accuracy"] == figures["recall"] == 1.0
    assert figures["precision"] == pytest.approx(1 / 3)


def test_llava_med_exact_match_is_a_precision():
    assert scores("llava_med", "The right lung is affected", "Right lung")["exact_match"] == 0.5


def test_llava_med_counts_repeated_words():
    figures = scores("llava_med", "right right right", "Right lung")
    assert figures["recall"] == 0.75
    assert figures["precision"] == 1.0
    assert figures["exact_match"] == pytest.approx(1 / 3)


def test_llava_med_open_accuracy_of_nothing_is_the_first_candidate():
    candidates = ("right lung", "left lung", "4")
    assert scores("llava_med", "", "Right lung", options=candidates)["open_accuracy"] == 1.0
    assert scores("llava_med", "four", "4", options=candidates)["open_accuracy"] == 1.0
    assert "open_accuracy" not in scores("llava_med", "four", "4")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("an X-ray, of the chest.", "x ray of chest"),
        ("x -ray and x-ray", "x ray and xray"),  # a mark beside a blank is deleted everywhere
        ("t1-weighted", "t1 weighted"),
        ("1,000 cells-a", "1000 cellsa"),
        ("none two", "0 2"),
        ("dont couldn'tve hed've yalld've", "don't couldn't've he'd've yalld've"),
        ("3.5 mm.", "3.5 mm"),
        ("." * 40, "." * 8),
    ],
)
def test_llava_med_normalises(text, normal):
    assert llava_med.normalise(text) == normal


# MedXpertQA


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("Therefore, among A through D, the answer is C.", "C", 1),
        ("The answer is (C).", "C", 1),
        ("A fracture; answer: C", "A", 1),  # the article
        ("The answer is B, no, the answer is C", "B", 1),
        ("c", "C", 0),
        ("Kupffer cell", "B", 0),
        ("among A through E: D", "D", 1),
        ("", "A", 0),
    ],
)
def test_medxpertqa_takes_the_first_letter(response, gold, right):
    assert choice("medxpertqa", response, gold, dataset="medxpertqa") == {"accuracy": right}


def test_medxpertqa_i_is_an_option_from_nine_on():
    assert choice("medxpertqa", "I say B", "I", tuple("abcdefghi"), "medxpertqa")["accuracy"] == 1.0
    assert choice("medxpertqa", "I understand: B", "B", tuple("abcdefghi"), "medxpertqa")["accuracy"] == 1.0


# MedVLThinker


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("B", 1),
        (" b ", 1),
        ("kupffer cell", 1),
        ("B. Kupffer Cell", 1),
        ("<answer> B </answer><answer>C</answer>", 1),
        ("so <answer>\nkupffer cell\n</answer>", 1),
        ("(B)", 0),
        ("B) Kupffer cell", 0),
        ("B.", 0),
        ("the kupffer cell", 0),
        ("The answer is B", 0),
        ("<answer></answer>", 0),
    ],
)
def test_medvlthinker_wants_label_text_or_both(response, right):
    assert choice("medvlthinker", response, "B") == {"accuracy": right}
    assert accuracy("medvlthinker", response, "B. Kupffer cell") == right


# Common parts


def test_bleu_of_missing_orders_is_tiny_and_of_no_word_0():
    words = "a b c d".split()
    assert bleu(words, words, (0.25,) * 4) == pytest.approx(1.0)
    assert bleu("a b".split(), words, (1.0,)) == pytest.approx(math.exp(-1))
    assert bleu("a a".split(), "a b".split(), (1.0,)) == pytest.approx(0.5)
    assert 0.0 < bleu("a x".split(), "a b".split(), (0.5, 0.5)) < 1e-100
    assert bleu([], words, (1.0,)) == bleu(["x"], words, (1.0,)) == 0.0


def test_rouge():
    assert rouge_n("the right lung", "right lung", 1) == pytest.approx(0.8)
    assert rouge_n("the right lung", "right lung", 2) == pytest.approx(2 / 3)
    assert rouge_n("lung", "lung", 2) == 0.0
    assert rouge_l("lung the right", "the right lung") == pytest.approx(2 / 3)
    assert rouge_l("the lung. the right", "the right lung") == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="empty"):
        rouge_n("..", "lung", 1)


def test_protocols_say_what_they_are():
    names = ("strict", "medevalkit", "lmms_eval", "mmmu", "vlmevalkit", "llava_med", "medxpertqa", "medvlthinker")
    assert tuple(PROTOCOLS) == names
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert (protocol.text == "answer") == (protocol.datasets is None) == (name == "strict")
    assert {name for name in names if PROTOCOLS[name].stochastic} == {"medevalkit", "lmms_eval", "mmmu"}


@pytest.mark.parametrize("name", ["mmmu", "lmms_eval", "vlmevalkit", "medxpertqa", "medevalkit"])
def test_a_choice_without_options_cannot_be_scored(name):
    with pytest.raises(ValueError, match="has 0 options"):
        choice(name, "A", "A", ())
