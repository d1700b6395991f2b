"""The GPU node: serves one model with transformers over the Ollama HTTP API. Start it with `python -m gpu_node`."""

__version__ = "0.1.0"
