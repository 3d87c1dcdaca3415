"""Published ways to make instruction data without a synthesizer: what ours is compared with."""
