"""Answers to prompts and conversations: a model opened with its adapters, decoding, sampling."""
