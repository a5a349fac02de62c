"""Rows before they meet a model: reading, preparing, packing. Needs no model."""
