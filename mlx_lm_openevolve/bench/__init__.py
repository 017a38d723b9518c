"""Whole models, stock against patched."""
