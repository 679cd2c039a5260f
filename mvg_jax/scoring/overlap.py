"""Word-overlap figures as two common packages compute them: sentence BLEU (nltk 3) and ROUGE (the package `rouge` 1.0)."""

import math
import sys
from collections import Counter
from collections.abc import Sequence


def bleu(said: Sequence[str], gold: Sequence[str], weights: Sequence[float]) -> float:
    """Sentence BLEU (Papineni et al. 2002) of one reference; weights: of the 1-, 2-, ... grams.

    As in nltk without smoothing, an order without a match counts with the smallest positive float, so that the score is
    tiny but not 0; no shared word at all is 0.
    """
    precisions = []
    for n in range(1, len(weights) + 1):
        counts, allowed = Counter(_grams(said, n)), Counter(_grams(gold, n))
        matched = sum(min(count, allowed[gram]) for gram, count in counts.items())
        if n == 1 and not matched:
            return 0.0
        precisions.append(matched / max(1, sum(counts.values())) or sys.float_info.min)
    penalty = 1.0 if len(said) > len(gold) else math.exp(1 - len(gold) / len(said))
    return penalty * math.exp(math.fsum(w * math.log(p) for w, p in zip(weights, precisions, strict=True)))


def rouge_n(said: str, gold: str, n: int) -> float:
    """ROUGE-n F (Lin 2004) over the sets of n-grams. ValueError where a side has no sentence."""
    sides = [set(_grams([word for sentence in _sentences(text) for word in sentence], n)) for text in (said, gold)]
    return _f(len(sides[0] & sides[1]), len(sides[0]), len(sides[1]))


def rouge_l(said: str, gold: str) -> float:
    """Summary-level ROUGE-L F, over sets of words as the package does it. ValueError where a side has no sentence."""
    said_sentences, gold_sentences = _sentences(said), _sentences(gold)
    common = {word for g in gold_sentences for s in said_sentences for word in _common_subsequence(g, s)}
    words = [len({word for sentence in side for word in sentence}) for side in (said_sentences, gold_sentences)]
    return _f(len(common), *words)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _sentences(text: str) -> list[list[str]]:
    """Split at every period; a sentence of blanks is one empty word."""
    sentences = [" ".join(part.split()).split(" ") for part in text.split(".") if part]
    if not sentences:
        raise ValueError("ROUGE of an empty text")
    return sentences


def _f(common: int, said: int, gold: int) -> float:
    precision, recall = (common / total if total else 0.0 for total in (said, gold))
    return 2.0 * precision * recall / (precision + recall + 1e-8)


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """The words of a longest common subsequence; on a tie, the one that drops the later word of `right` first."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    i, j, words = len(left), len(right), []
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            words.append(left[i])
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
