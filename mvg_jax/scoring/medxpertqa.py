"""MedXpertQA's official evaluator (repository TsinghuaC3I/MedXpertQA, f21247d), zero-shot chain of thought.

Take what follows the prompt's trigger ("Therefore, among A through E, the answer is", up to the next one), else what
follows " answer is ", else everything; delete "I understand" and "A through E"; the first capital letter of an option
that stands as a word is the answer.

Bugs as published:
- the first such letter counts, so the article in "A fracture; answer: C" says A, and "I" is an option from nine on;
- after two triggers the text between them is read, not the last;
- lower-case letters and option texts are never answers.
"""

import re

from mvg_jax.scoring.question import Protocol, Question, letters

_TRIGGERS = ("Therefore, among A through {}, the answer is", " answer is ")
_DELETED = ("I understand", "A through J", "A through E", "A through D")


def score(question: Question, response: str) -> dict[str, float]:
    """accuracy."""
    options = letters(question)
    text = response.strip()
    for trigger in _TRIGGERS:
        if len(parts := text.split(trigger.format(options[-1]))) > 1:
            text = parts[1].strip()
            break
    for phrase in _DELETED:
        text = text.replace(phrase, "")
    named = re.search(rf"\b({'|'.join(options)})\b", text)
    return {"accuracy": float(named is not None and named[1].lower() == question.gold.lower())}


PROTOCOL = Protocol("medxpertqa", "response", score, frozenset({"medxpertqa"}))
