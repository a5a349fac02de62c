"""Measuring what a run came to: perplexity, accuracy, answers, and the pictures of it."""
