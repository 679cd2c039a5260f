"""Scorers of answers: strict.py is ours, the reward and the headline metric; beside it the public ones, one file each."""

from collections.abc import Mapping

from mvg_jax.scoring import llava_med, lmms_eval, medevalkit, medvlthinker, medxpertqa, mmmu, strict, vlmevalkit
from mvg_jax.scoring.question import Protocol

_FILES = (strict, medevalkit, lmms_eval, mmmu, vlmevalkit, llava_med, medxpertqa, medvlthinker)
PROTOCOLS: Mapping[str, Protocol] = {file.PROTOCOL.name: file.PROTOCOL for file in _FILES}
