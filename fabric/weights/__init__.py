"""Weights on disk: streaming GGUF read and write, adapters, merge, quantize, and the history every file carries."""
