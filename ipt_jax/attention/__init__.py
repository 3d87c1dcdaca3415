"""Attention: one specification, several backends."""
