"""Whole decode steps: layers that are known, run in fewer launches where the gate proved it.

bodies.py     which classes are known: by what their `__call__` does
merge.py      products of one input become one; the separate weights are views of it
structure.py  what a verdict on a whole model is about
steps.py      run time: a model with an accepted verdict is merged when it is first called
judge.py      the gate: right against float32, wrong merges told, faster in turns
"""
