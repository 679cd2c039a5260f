"""Sampling trajectories to imitate: who speaks, what is kept, and a client for chat endpoints."""
