"""Refusals: what several rooms say alike."""
