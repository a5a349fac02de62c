"""Tests of files and weights: formats, GGUF, adapters, merge, quantize."""
