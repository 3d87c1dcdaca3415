"""The ground that every room stands on; it imports no room and neither jax nor torch."""
