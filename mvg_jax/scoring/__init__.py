"""Scorers of answers: strict.py is ours, the reward and the headline metric."""
