"""Rows: read, normalise, split, pack. Needs no model and no device."""
