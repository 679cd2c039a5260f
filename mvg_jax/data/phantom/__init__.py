"""PhantomVQA: procedural CT-like abdomens with questions, most of which provably need a tool."""

from mvg_jax.data.phantom.expert import DECISIONS, THINKS, expert, mixture
from mvg_jax.data.phantom.questions import CONTROLS, KINDS, all_questions
from mvg_jax.data.phantom.scene import CLASSES
from mvg_jax.data.phantom.source import PhantomSource, dense_labels

__all__ = [
    "CLASSES",
    "CONTROLS",
    "DECISIONS",
    "KINDS",
    "THINKS",
    "PhantomSource",
    "all_questions",
    "dense_labels",
    "expert",
    "mixture",
]
