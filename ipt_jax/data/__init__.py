"""Record shards to batches: tasks and mixtures, the plan of their order, packing, the pipeline."""
