"""Metrics of a run in the tools that people watch runs with, each through its own package, which is optional."""
