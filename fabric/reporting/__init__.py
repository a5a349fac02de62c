"""A page about training runs: what was set, what was measured, what the model said. Leans on nothing that trains."""
