"""Whole decode steps: a model's layers, compiled where the gate proved them right and faster.

look.py       what a layer does around its cache and attention, seen by running it on stand-ins
split.py      a layer in two compiled halves around them
fused.py      sums with norms, norms with rotations: one launch each, found while a layer is traced
merge.py      products of one input become one; the separate weights are views of it
store.py      what a token stores in a quantised cache, in three launches
launches.py   the kernels beside these files (.metal) as launches
structure.py  what a verdict on a whole model is about
steps.py      run time: a model with an accepted verdict decodes with compiled layers
judge.py      the gate: right against float32, wrong layers told, faster in turns
"""
