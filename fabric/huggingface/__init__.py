"""Hugging Face checkpoints and PEFT adapters, to GGUF and back. What may live here: their file formats, their names for
things, and nothing that trains. Leans on weights/ and text/.
"""
