import dataclasses
import json

import pytest

from mvg_jax.errors import RunError
from mvg_jax.report import figures as room
from mvg_jax.report import markdown
from mvg_jax.report.figures import NO_SUCH_TOOL, figures
from mvg_jax.scoring.published import PUBLISHED

ZOOM, FLIP = "image_zoom_in_tool", "image_flip_tool"
OPTIONS = ("Left", "Right")


def choices(made, answers, **fields):
    """A row of samples of choice questions whose gold is A, one list a task."""
    return [
        made(answer, id=f"q/{t}", sample=s, answer_type="choice", gold="A", options=OPTIONS, chance=0.5, **fields)
        for t, task in enumerate(answers)
        for s, answer in enumerate(task)
    ]


def test_samples_become_avg_pass_and_majority(made):
    rows = choices(made, [["A", "B", "A. Left", "left"], ["Right", None, "B", "A"], [None] * 4])
    on = figures(rows)["vqa_rad"]["tools"]["on"]
    assert on["accuracy"] == pytest.approx((0.75 + 0.25 + 0) / 3)
    sampling = {name: row["mean"] for name, row in on["sampling"].items()}
    assert sampling.keys() == {"avg@4", "pass@1", "pass@2", "pass@4", "majority@4"}
    assert sampling["avg@4"] == sampling["pass@1"] == pytest.approx(on["accuracy"])
    assert sampling["pass@2"] == pytest.approx((1.0 + 0.5 + 0) / 3)  # of six pairs, three hold the one right answer
    assert sampling["pass@4"] == pytest.approx(2 / 3)
    assert sampling["majority@4"] == pytest.approx(1 / 3)  # letter, text and both are one vote
    assert on["answered"] == pytest.approx(7 / 12)
    assert (on["items"], on["chance"]) == (3, 0.5)
    assert figures(rows[::4])["vqa_rad"]["tools"]["on"]["sampling"] == {}


def test_parts_of_a_benchmark_have_their_own_rows(made):
    rows = [
        made("Left", id="0", kind="POS", modality="CT"),
        made("Right", id="1", kind="POS", modality="MR"),
        made("yes", id="2", kind="PRES", modality="MR", gold="yes", answer_type="yes_no", calls=[(ZOOM, None)]),
    ]
    by = figures(rows)["vqa_rad"]["tools"]["on"]["by"]
    assert {name: (row["items"], row["accuracy"]) for name, row in by["kind"].items()} == {
        "POS": (2, 0.5),
        "PRES": (1, 1.0),
    }
    assert {name: row["items"] for name, row in by["modality"].items()} == {"CT": 1, "MR": 2}
    assert by["answer type"]["yes_no"]["call rate"] == 1.0
    assert by["language"] == {}, "one language is no division"


def test_tool_use_is_counted_by_call_and_by_answer(made):
    rows = [
        made("Left", id="0", calls=[(ZOOM, None), (ZOOM, "E4")], turns=3, tool_choice=1.0, box_hit=0.5),
        made("Right", id="1", calls=[(FLIP, None), ("<b>rm -rf</b>", "E2")], turns=4, malformed=1, tool_choice=0.0),
        made("Left", id="2", turns=1),
    ]
    use = figures(rows)["vqa_rad"]["tools"]["on"]["tool use"]
    assert use["call rate"] == pytest.approx(2 / 3)
    assert use["calls"] == pytest.approx(4 / 3)
    assert use["error rate"] == 0.5
    assert use["malformed"] == pytest.approx(1 / 8)
    assert (use["accuracy with a call"], use["accuracy without a call"]) == (0.5, 1.0)
    assert (use["tool choice"], use["box hit"]) == (0.5, 0.5)
    assert use["tools"][ZOOM] == {
        "calls": 2,
        "call rate": pytest.approx(1 / 3),
        "error rate": 0.5,
        "accuracy with": 1.0,
    }
    assert set(use["tools"]) == {ZOOM, FLIP, NO_SUCH_TOOL}


def test_settings_of_tools_are_compared_task_by_task(made):
    on = [made("Left", id=str(i)) for i in range(12)]
    off = [made("Left" if i < 4 else "Right", id=str(i), tools="off") for i in range(12)]
    found = figures(on + off)["vqa_rad"]["differences"]
    assert found.keys() == {"on - off"}
    assert found["on - off"]["mean"] == pytest.approx(8 / 12)
    assert found["on - off"]["low"] > 0
    with pytest.raises(RunError, match="vqa_rad: two runs of different tasks"):
        figures(on + off[:-1])


def test_splits_of_a_benchmark_are_benchmarks_of_their_own(made):
    rows = [made("Left", id="0"), made("Right", id="0", split="train"), made("Left", id="0", benchmark="slake")]
    found = figures(rows)
    assert {name: row["tools"]["on"]["accuracy"] for name, row in found.items()} == {
        "vqa_rad:test": 1.0, "vqa_rad:train": 0.0, "slake": 1.0,
    }  # fmt: skip


def test_samples_must_be_complete(made):
    rows = [made(id="0"), made(id="0", sample=1), made(id="1")]
    with pytest.raises(RunError, match=r"task 1 has the samples \[0\], not 0 to 1"):
        figures(rows)


def test_protocols_are_scored_beside_each_other(made):
    rows = [
        made("nodule", id="0", gold="no", answer_type="yes_no", protocols=("strict", "medevalkit")),
        made("the right lung", id="1", gold="right lung", answer_type="open", protocols=("strict", "medevalkit")),
    ]
    on = figures(rows)["vqa_rad"]["tools"]["on"]
    assert on["accuracy"] == on["protocols"]["strict"]["accuracy"]["mean"]
    assert on["other"] == {"medevalkit": on["protocols"]["medevalkit"]["accuracy"]["mean"]}
    assert on["by"]["answer type"]["yes_no"]["other"]["medevalkit"] == 1.0, "its bug: nodule says no"
    assert on["by"]["answer type"]["yes_no"]["accuracy"] == 0.0
    assert on["protocols"]["medevalkit"]["exact_match"]["items"] == 1, "a metric of open questions"


def medxpert(made, count, **fields):
    values = {"benchmark": "medxpertqa", "dataset": "medxpertqa", "protocols": ("strict", "medevalkit", "medxpertqa")}
    base = made("A", answer_type="choice", gold="A", options=OPTIONS, **(values | fields))
    return [dataclasses.replace(base, id=str(i)) for i in range(count)]


def test_published_numbers_stand_beside_ours_only_under_the_same_setting(made):
    found = figures(medxpert(made, 2000))["medxpertqa"]["published"]
    beside = {
        entry["setting"]["protocol"]: entry["others"] for entry in found if entry["setting"]["metric"] == "accuracy"
    }
    assert beside["strict"] == beside["medxpertqa"] == [], "nobody published under these"
    assert [row["model"] for row in beside["medevalkit"][:2]] == ["GPT-5", "GPT-4.1"]
    assert len(beside["medevalkit"]) == 11
    for changed in (medxpert(made, 1999), medxpert(made, 2000, split="dev"), medxpert(made, 2000, language="zh")):
        assert all(entry["others"] == [] for entry in figures(changed)["medxpertqa"]["published"])


def test_open_questions_are_another_form_than_choices(made):
    """MedVLThinker's 170 questions of MMMU all have choices."""
    values = {
        "benchmark": "mmmu",
        "dataset": "mmmu",
        "split": "val_dev_choice",
        "protocols": ("strict", "medvlthinker"),
    }
    rows = [made("A", id=f"c{i}", answer_type="choice", gold="A", options=OPTIONS, **values) for i in range(170)]
    found = [entry for entry in figures(rows)["mmmu"]["published"] if entry["others"]]
    assert [entry["setting"]["protocol"] for entry in found] == ["medvlthinker"]
    assert {row["model"] for row in found[0]["others"]} >= {"MedVLThinker-7B", "GPT-4o"}
    rows[0] = made("x", id="c0", answer_type="open", gold="y", **values)
    assert not any(entry["others"] for entry in figures(rows)["mmmu"]["published"])


def test_the_report_has_a_table_a_setting_and_never_two_in_one(made):
    rows = medxpert(made, 2000)
    text = markdown.evaluation({"checkpoint": "x"}, figures(rows))
    published = text[text.index("### Beside published numbers") :]
    assert published.count("Protocol ") == published.count("| ours |") == 1
    assert "| ours | 100.00 | this run: full prompt, tools on, 1 answer a task |" in published
    assert "| GPT-5 | 71.00 |" in published
    assert "known for: strict, medxpertqa." in published
    theirs = {row.model for row in PUBLISHED if row.setting.protocol == "medevalkit"}
    assert not [row.model for row in PUBLISHED if row.model not in theirs and f"| {row.model} |" in published]


def test_answers_that_a_public_rule_draws_at_random_are_owned_up_to(made):
    values = {"benchmark": "mmmu", "dataset": "mmmu", "answer_type": "choice", "gold": "A", "options": OPTIONS}
    rows = [
        made(text, id=str(i), protocols=("strict", "mmmu"), response=text, **values)
        for i, text in enumerate(("(A)", "I pass"))
    ]
    found = figures(rows)
    drawn = found["mmmu"]["tools"]["on"]["protocols"]["mmmu"]["drawn"]
    assert drawn == {"mean": 0.5, "items": 2}
    assert "`drawn`: share of answers" in markdown.evaluation({}, found)
    assert "`drawn`" not in markdown.evaluation({}, figures([made()]))


def test_text_of_data_sets_cannot_become_markup(made):
    rows = [
        made(id="0", kind="a | b\n# c <script>`x`"),
        made(id="1", kind="[l](javascript:x)", calls=[("*evil*", "E2")]),
        made(id="2", kind="\ud800"),
    ]
    text = markdown.evaluation({"checkpoint": "*x*"}, figures(rows))
    line = next(line for line in text.splitlines() if "script" in line and "javascript" not in line)
    assert line.startswith(r"| a \| b \# c \<script\>\`x\` | 1 |")
    assert r"| \[l\](javascript:x) |" in text
    assert "evil" not in text
    text.encode()


def test_figures_are_plain_json(made):
    found = figures(choices(made, [["A", "B"], [None, "B"]]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert room.tasks_of(choices(made, [["A", "B"]]))[0][1].answer == "B"
