"""Instruction Pre-Training: pairs synthesised from raw texts, by a tuned synthesizer."""
