"""The gate: the only place that decides that a kernel may run."""
