"""The environment: wire format, episodes, rewards and their audit; gym.py adapts it to Gymnasium."""
