"""Tests of the whole, named after what a user would lose."""
