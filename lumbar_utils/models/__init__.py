"""The grading network: encoders, pooling over slices, heads; its weights on disk, and ensembles of runs."""
