"""Text and tokens: a tokenizer built from a GGUF, chat templates, and which tokens of a row are trained.

Leans on `data/` for records and on the core for one thing, merging the symbols of a word (`core/merging.py`).
"""
