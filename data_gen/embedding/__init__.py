"""Vectors of texts: pooling, encoders, stores, indexes."""
