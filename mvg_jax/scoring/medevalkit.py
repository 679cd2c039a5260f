"""MedEvalKit (repository alibaba-damo-academy/MedEvalKit, 9b12e3b), the toolkit of Lingshu and those who compare with it.

Answers are searched in \\boxed{}, in <answer> tags, and after markers such as "answer is"; the text case is lowered.
- VQA-RAD, PathVQA: gold yes or no: exactly one of the substrings "yes" and "no" is in the answer, and gold is. Other
  golds, VQA-RAD's closed ones too, count as open: exact match, with BLEU, ROUGE and a token F1 beside it.
- SLAKE: closed questions by equality less periods and line breaks, open ones as above. English and Chinese together.
- PMC-VQA, MedXpertQA, OmniMedVQA: the option's letter or text, else whatever option difflib finds most similar.
- MMMU: MMMU's official rule (see mmmu.py) on the extracted answer; random letters included (DRAWN).
The data set's figure is (closed right + open right) / N, the mean over questions.

With a judge, open questions are decided by a language model: `judged` takes a callable and reads its reply, in which
<judge>0</judge> means correct. Closed questions stay with the rules (the first release had SLAKE's judged too).

Bugs as published, reproduced:
- "no" is found in "normal", "nodule", "diagnosis", "unknown", "cannot";
- SLAKE's closed golds are "Yes" and "No", so the test for yes and no never applies: "Yes, it is" and " Yes" are wrong;
- exact match keeps periods, articles and the blank that follows "answer:": "Answer: MRI" is not "MRI";
- the reported "precision" is F1, the reported "recall" is precision, the reported "f1" is recall;
- an open answer that is empty, or nothing but blanks or periods, raises an error: here it is wrong, with RAISED;
- "boxed" without braces reads as "None";
- a choice that cannot be read is the most similar option; an empty response is A, and "I think it is B" is not B;
- MMMU's open questions (validation) are compared character by character: always wrong.
Bugs of the aggregation at that commit, not reproduced, since its figures cannot be meant: with a judge, SLAKE's judged
closed questions are added to those by rule (accuracy above 1 is possible), VQA-RAD's judged open ones to those by exact
match, and PathVQA's closed ones are dropped; MMMU's test split stops with an error.
Not reproduced either: ROUGE-L recurses once a word, and Python stops it at some thousand words.
"""

import difflib
import re
from collections.abc import Callable, Sequence

from mvg_jax.scoring import mmmu
from mvg_jax.scoring.overlap import bleu, rouge_l, rouge_n
from mvg_jax.scoring.question import CHOICE, CLOSED_TYPES, DRAWN, RAISED, Protocol, Question, letters

# (question, gold answer, the user's answer) -> the judge's reply.
Judge = Callable[[str, str, str], str]

NO_BOX = "None"
_MARKERS = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "答案:",
    "final answer",
    "final answer is",
)
_OPEN_METRICS = ("exact_match", "bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rouge2", "rougel") + (
    "precision",
    "recall",
    "f1",
)
_TAGGED_CHOICES = ("medxpertqa", "omnimedvqa")


def score(question: Question, response: str, judge: Judge | None = None) -> dict[str, float]:
    """accuracy, and beside it closed_accuracy, or open_accuracy with exact_match, bleu1 to bleu4, rouge1, rouge2, rougel,
    precision, recall and f1 under their reported names and RAISED, or (MMMU) DRAWN."""
    if question.dataset == "mmmu":
        return _mmmu(question, response)
    if question.answer_type == CHOICE:
        said = tagged(response, "answer") if question.dataset in _TAGGED_CHOICES else response
        return {"accuracy": float(choice_right(_shown(question), question.gold, said))}
    said, gold = _unwrap(response), question.gold
    if question.dataset == "slake":
        closed, right = question.answer_type in CLOSED_TYPES, _yes_no_right if gold in ("yes", "no") else _equal
    else:
        said, gold = said.lower().strip(), gold.lower().strip()
        closed, right = gold in ("yes", "no"), _yes_no_right
    if closed:
        return dict.fromkeys(("accuracy", "closed_accuracy"), float(right(gold.lower(), said)))
    figures = _open(gold.lower(), said)
    verdict = figures["exact_match"]
    if judge is not None and not figures[RAISED]:
        verdict = float(tagged(judge(question.question, gold, said), "judge") == "0")
    return {"accuracy": verdict, "open_accuracy": verdict, **figures}


def judged(judge: Judge) -> Protocol:
    """The protocol with a judge for open questions."""
    return PROTOCOL._replace(name="medevalkit_judged", score=lambda question, text: score(question, text, judge))


def boxed(text: str) -> str:
    """The content of the last \\boxed{...} with balanced braces; NO_BOX if there is none."""
    start = text.rfind("\\boxed{") + len("\\boxed{")
    depth = 1 if "\\boxed{" in text else len(text) + 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start:i].strip()
    return NO_BOX


def tagged(text: str, tag: str) -> str:
    """The contents of all <tag>...</tag>, joined with blanks; the text itself if that is nothing."""
    return " ".join(re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)).strip() or text


def choice_right(choices: Sequence[str], gold: str, response: str) -> bool:
    """Whether the response names gold, a letter or a text, among the choices as they were shown."""
    names = [chr(ord("a") + i) for i in range(len(choices))]
    texts, gold, said = [choice.lower() for choice in choices], gold.strip().lower(), response.lower()
    first, *_, last = said.split("\n\n") * 2
    if first in names:
        said = first
    elif (head := last.split(".")[0]) in names:
        said = head
    said = _parse(said).strip().lower().replace("\n", "")
    short = said.split(".")[0].split(":")[-1]
    if short == gold:
        return True
    if short in names:
        return texts[names.index(short)] == gold
    if short in texts:
        return gold in names and short == texts[names.index(gold)]
    ratios = [difflib.SequenceMatcher(None, text, said).ratio() for text in texts]
    nearest = ratios.index(max(ratios))
    return gold in (names[nearest], texts[nearest])


def _mmmu(question: Question, response: str) -> dict[str, float]:
    if "<answer>" in response:
        response = tagged(response, "answer")
    if (content := boxed(response)) != NO_BOX:
        response = content
    if question.answer_type != CHOICE:
        return {"accuracy": float(mmmu.open_right((question.gold,), response)), DRAWN: 0.0}
    if "<answer>" in response:
        response = tagged(response, "answer")
    elif "\\boxed" in response:
        response = boxed(response)
    return mmmu.choice_score(question, mmmu.choose(response.strip(), question.options))


def _shown(question: Question) -> list[str]:
    """The options with their letters, as the data sets' prompts show them; left alone if they have letters already."""
    pairs = list(zip(letters(question), question.options, strict=True))
    if all(re.match(rf"\s*{letter}\s*[.:]", text) for letter, text in pairs):
        return list(question.options)
    form = " {}: {} " if question.dataset == "pmc_vqa" else "{}. {}"
    return [form.format(*pair) for pair in pairs]


def _unwrap(text: str) -> str:
    content = boxed(text)
    return content if content != NO_BOX else tagged(text, "answer")


def _parse(text: str) -> str:
    """The answer in a response, lower case; blanks are left where the markers were."""
    text = text.lower()
    text = boxed(text) if "boxed" in text else tagged(text, "answer")
    for marker in _MARKERS:
        text = text.split(marker)[-1]
    return text


def _bare(said: str) -> str:
    return _parse(said).replace("\n", "").replace(".", "")


def _equal(gold: str, said: str) -> bool:
    return _bare(said) == gold


def _yes_no_right(gold: str, said: str) -> bool:
    said = _bare(said)
    return ("yes" in said) != ("no" in said) and gold in said


def _open(gold: str, said: str) -> dict[str, float]:
    """The figures of an open answer, under their reported names."""
    said = _parse(said)
    said_words, gold_words = set(said.lower().split()), set(gold.split())
    try:
        rouges = {"rouge1": rouge_n(said.lower(), gold, 1), "rouge2": rouge_n(said.lower(), gold, 2)}
        rouges["rougel"] = rouge_l(said.lower(), gold)
    except ValueError:
        return dict.fromkeys(_OPEN_METRICS, 0.0) | {RAISED: 1.0}
    if not said_words or not gold_words:
        return dict.fromkeys(_OPEN_METRICS, 0.0) | {RAISED: 1.0}
    sides = [text.lower().replace(".", " .").split(" ") for text in (said, gold)]
    common = len(said_words & gold_words)
    precision, recall = common / len(said_words), common / len(gold_words)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return {
        "exact_match": float(said == gold),
        **{f"bleu{n}": bleu(*sides, (1 / n,) * n) for n in (1, 2, 3, 4)},
        **rouges,
        "precision": f1,
        "recall": precision,
        "f1": recall,
        RAISED: 0.0,
    }


PROTOCOL = Protocol(
    "medevalkit",
    "response",
    score,
    frozenset({"vqa_rad", "slake", "path_vqa", "pmc_vqa", "mmmu", "medxpertqa", "omnimedvqa"}),
    stochastic=True,
)
