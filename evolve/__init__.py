"""The search that makes the kernels.

    propose -> check (host) -> check (GPU) -> measure -> archive -> publish

loop        the whole search on one page
propose/    what to try next: params (numbers; surrogate), llm and mailbox (source; structural)
evaluator   runs candidates in workers (worker): check on the host, measure on the GPU
pool        the executor whose workers are of this machine; fleet/ has one whose are of others
archive     what was tried and the fittest kernels: the replay of the journal's events
publish     the winners before the gate, and into the registry
heuristic   another search: default expressions (grammar) over points that were measured (points)

A Candidate comes to an Evaluation (evaluation.py: what passes between evaluator and worker;
events.py: what the journal keeps). commands and options are the command line's side. The core never
imports this package; the command line does, when it is asked to search.
"""

from __future__ import annotations
