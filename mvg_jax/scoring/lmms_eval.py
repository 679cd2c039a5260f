"""lmms-eval (repository EvolvingLMMs-Lab/lmms-eval, 75571cf) for SLAKE and MMMU, its bugs included.

SLAKE: both sides lose bracketed text and punctuation, English and Chinese words for yes and no become one word, and
must then be equal. MMMU: choices as the official evaluator (see mmmu.py), with bare letters found as "X " or "X.".

Bugs as published:
- SLAKE: articles are kept ("the liver" is not "Liver"); a list must be in gold's order;
- SLAKE: "normal" and "abnormal" in Chinese count as yes and no, so "是" answers a question whose gold is "正常";
- MMMU: capitals at the end of a word count ("AND no more" says D);
- MMMU: of an open question's parsed predictions one string is kept and walked character by character: always wrong;
- MMMU: random letters, as in the official evaluator.
"""

import re
import string

from mvg_jax.scoring import mmmu
from mvg_jax.scoring.question import CHOICE, CLOSED_TYPES, DRAWN, Protocol, Question

_BRACKETED = (re.compile(r"\([^)]*\)"), re.compile(r"（[^）]*）"))
_PUNCTUATION = str.maketrans(
    dict.fromkeys(
        string.punctuation + "！？｡＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、。《》【】", " "
    )
)
_WORDS = {
    **dict.fromkeys(("x ray", "xray"), "xray"),
    **dict.fromkeys(("yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"), "yes"),
    **dict.fromkeys(("no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以"), "no"),
    **dict.fromkeys(("不正常", "异常"), "no"),
}


def score(question: Question, response: str) -> dict[str, float]:
    """accuracy; of MMMU with DRAWN where the letter was drawn, of SLAKE also open_accuracy or closed_accuracy."""
    if question.dataset != "mmmu":
        right = float(normalise(response) == normalise(question.gold))
        kind = "closed_accuracy" if question.answer_type in CLOSED_TYPES else "open_accuracy"
        return {"accuracy": right, kind: right}
    if question.answer_type == CHOICE:
        return mmmu.choice_score(question, mmmu.choose(response, question.options, bare=("{} ", "{}.")))
    kept = str(mmmu.predictions(response)[0])
    return {"accuracy": float(mmmu.open_right((question.gold, *question.accepted), kept)), DRAWN: 0.0}


def normalise(text: str) -> str:
    """A SLAKE answer as it is compared."""
    text = text.strip().lower()
    for bracketed in _BRACKETED:
        text = bracketed.sub(" ", text)
    text = " ".join(text.translate(_PUNCTUATION).split())
    return _WORDS.get(text, text)


PROTOCOL = Protocol("lmms_eval", "response", score, frozenset({"slake", "mmmu"}), stochastic=True)
