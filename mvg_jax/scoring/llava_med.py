"""LLaVA-Med's evaluator (repository microsoft/LLaVA-Med, v1.0 b9a98a7), the one behind most fine-tuned results on VQA-RAD,
SLAKE and PathVQA, its bugs included.

Both sides are normalised as VQA challenges do: punctuation out, number words to digits, articles dropped, contractions
expanded. Closed questions: 1 if the response contains "yes" or "no" and contains gold. Open questions: the headline is
recall, the share of gold's words that are in the response. `open_accuracy` needs the data set's candidate answers (the
question's options): the candidate that shares the largest part of its words with the response, compared with gold.

Bugs as published:
- "no" is found in "normal", "diagnosis", "cannot"; "yes and no" is right for either;
- a closed gold other than yes and no (MRI, Left) is wrong unless the response happens to contain "no" ("abnormal");
- naming every word there is has recall 1; repeated words count as often as they are said, so tp may exceed gold's;
- "exact match" is gold's distinct words that were said over all words said: a precision;
- an empty response has no overlap with any candidate, so `open_accuracy` takes the first one;
- a period is to be deleted unless a digit stands on either side, but "5. 6" loses it; and at most 32 are deleted, since
  a flag is passed for the count; both sides are normalised twice.
"""

import re
from collections import Counter

from mvg_jax.scoring.overlap import bleu
from mvg_jax.scoring.question import CLOSED_TYPES, Protocol, Question

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = ("a", "an", "the")
# The published contractions, less those that change nothing or, being written with capitals, are never met.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
""".split()


def _one_apostrophe_lost() -> dict[str, str]:
    """Each contracted word by every spelling that lacks one of its apostrophes."""
    places = [(word, i) for word in _CONTRACTED for i, c in enumerate(word) if c == "'"]
    return {word[:i] + word[i + 1 :]: word for word, i in places} | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _one_apostrophe_lost()


def score(question: Question, response: str) -> dict[str, float]:
    """Closed: accuracy and closed_accuracy, the same. Open: accuracy, which is recall, recall, precision, f1, exact_match,
    bleu, bleu1 to bleu3 (n-grams of that order alone), and open_accuracy where there are options."""
    said, gold = normalise(response.lower()), normalise(question.gold.lower())
    if question.answer_type in CLOSED_TYPES:
        right = float(("yes" in said or "no" in said) and gold in said)
        return {"accuracy": right, "closed_accuracy": right}
    figures = _overlap(normalise(said).split(), normalise(gold).split())
    orders = {"bleu": (0.25,) * 4, "bleu1": (1, 0, 0, 0), "bleu2": (0, 1, 0, 0), "bleu3": (0, 0, 1, 0)}
    figures |= {name: bleu(said.split(), gold.split(), weights) for name, weights in orders.items()}
    if question.options:
        nearest = _nearest(set(normalise(said).split()), question.options)
        figures["open_accuracy"] = float(nearest == normalise(gold))
    return {"accuracy": figures["recall"], **figures}


def normalise(text: str) -> str:
    """The text as it is compared."""
    joins = _DIGIT_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        deleted = joins or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    words = [_DIGITS.get(word, word) for word in _PERIOD.sub("", cleaned, count=_MOST_PERIODS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES).replace(",", "")


def _overlap(said: list[str], gold: list[str]) -> dict[str, float]:
    said_counts, gold_counts = Counter(said), Counter(gold)
    shared = said_counts.keys() & gold_counts.keys()
    if not shared:
        return dict.fromkeys(("recall", "precision", "f1", "exact_match"), 0.0)
    hits = sum(said_counts[word] for word in shared)
    missed = sum(count for word, count in gold_counts.items() if word not in shared)
    recall, precision = hits / (hits + missed), hits / len(said)
    f1 = 2 * precision * recall / (precision + recall)
    return {"recall": recall, "precision": precision, "f1": f1, "exact_match": len(shared) / len(said)}


def _nearest(said: set[str], candidates: tuple[str, ...]) -> str:
    """The normalised candidate of whose words the largest part was said; the first of equals."""
    texts = [normalise(candidate) for candidate in candidates]
    words = [set(text.lower().split()) for text in texts]
    shares = [len(said & of) / len(of) if of else 0.0 for of in words]
    return texts[shares.index(max(shares))]


PROTOCOL = Protocol("llava_med", "response", score, frozenset({"vqa_rad", "slake", "path_vqa"}))
