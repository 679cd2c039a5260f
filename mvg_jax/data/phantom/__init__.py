"""PhantomVQA: procedural CT-like abdomens with questions, most of which provably need a tool. Other modalities: `atlas`."""

from mvg_jax.data.phantom.expert import ATLAS_THINKS, DECISIONS, THINKS, expert, mixture
from mvg_jax.data.phantom.patterns import PATTERN_LABEL
from mvg_jax.data.phantom.questions import CONTROLS, KINDS, all_questions
from mvg_jax.data.phantom.scene import CLASSES, FINDINGS
from mvg_jax.data.phantom.source import PhantomCloseUps, PhantomLessons, PhantomSource

__all__ = [
    "ATLAS_THINKS",
    "CLASSES",
    "CONTROLS",
    "DECISIONS",
    "FINDINGS",
    "KINDS",
    "PATTERN_LABEL",
    "THINKS",
    "PhantomCloseUps",
    "PhantomLessons",
    "PhantomSource",
    "all_questions",
    "expert",
    "mixture",
]
