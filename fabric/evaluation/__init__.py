"""Judging: loss, perplexity, labelled accuracy, and tests of what adapters changed."""
