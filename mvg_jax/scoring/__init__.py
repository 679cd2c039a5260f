"""Scorers of answers: strict.py is ours, the reward and the headline metric; beside it the public ones, one file each."""

from collections.abc import Mapping

from mvg_jax.scoring import strict
from mvg_jax.scoring.question import Protocol

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in (strict.PROTOCOL,)}
