"""Text and tokens: a tokenizer built from a GGUF, chat templates, and which tokens of a row are trained.

Leans on `data/` for records; never on the core. Everything here is plain Python and numpy.
"""
