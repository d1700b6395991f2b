"""The engine: one model, one device. Only runner, loader and sampler know torch."""
