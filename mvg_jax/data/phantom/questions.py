"""What is asked about a scene, in words. No wording depends on the answer."""

import numpy as np

from mvg_jax.data.phantom.patterns import ATTRIBUTES, COUNTS
from mvg_jax.data.phantom.scene import ORGANS

# Share of each kind among the pairs of items.
SHARES = {
    "attribute": 0.27,
    "count": 0.16,
    "compare": 0.16,
    "window": 0.16,
    "organ": 0.09,
    "side": 0.08,
    "structure": 0.08,
}
KINDS = tuple(SHARES)
CONTROLS = ("organ", "side", "structure")

OPTIONS = {
    "attribute": ATTRIBUTES,
    "count": COUNTS,
    "compare": ("left", "right"),
    "window": ("lytic", "sclerotic"),
    "organ": ORGANS,
    "side": ("left", "right"),
    "structure": ("yes", "no"),
}
# What a question of kind `compare` may ask for.
TARGETS = tuple(a for a in ATTRIBUTES if a != "homogeneous")

WORDINGS = {
    "attribute": ("What is the structure of the lesion?", "What is the internal structure of the lesion?"),
    "count": ("How many specks are in the lesion?",),
    "compare": ("Which lesion is {target}, left or right in the image?",),
    "window": ("Is the bone lesion lytic or sclerotic?", "Is the lesion in the vertebra lytic or sclerotic?"),
    "organ": ("Which organ holds the lesion?",),
    "side": ("On which side of the image is the lesion?",),
    "structure": ("Is there a large cyst?",),
}


def wording(rng: np.random.Generator, kind: str, target: str) -> str:
    """A question of this kind. target: what `compare` asks for; other kinds do not use it."""
    return WORDINGS[kind][rng.integers(len(WORDINGS[kind]))].format(target=target)


def all_questions() -> tuple[str, ...]:
    """Every question the data set can ask."""
    filled = [text.format(target=target) for texts in WORDINGS.values() for text in texts for target in TARGETS]
    return tuple(dict.fromkeys(filled))
