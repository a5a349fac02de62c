"""Run directories: what lies in one, who holds it, and lists of them. Knows nothing of models or training."""
