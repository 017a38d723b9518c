"""`mlx-lm-openevolve tune`: a model -> every workload it will meet -> the gate -> your registry.

workloads.py  which workloads: the model is traced, nothing is computed
decide.py     the known kernels on each, the most valuable first
steps.py      whole decode steps with compiled layers
params.py     params that nobody tried yet, where time is left
report.py     chip, versions, verdicts and tokens a second in one file
command.py    the command and what is printed; options.py its options
"""
