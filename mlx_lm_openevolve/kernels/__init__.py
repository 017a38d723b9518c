"""Kernels as data: kernel, launches, expressions, verdicts, registry."""
