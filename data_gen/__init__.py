"""Synthesis of instruction data: corpus -> engine -> record shards. Never imports jax."""
