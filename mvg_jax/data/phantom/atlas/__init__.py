"""Images of other kinds than CT, with the rest of what is asked about medical images; see `source`."""

from mvg_jax.data.phantom.atlas.source import CONTENT, FAMILIES, PhantomAtlas, all_questions

__all__ = ["CONTENT", "FAMILIES", "PhantomAtlas", "all_questions"]
