"""The search that makes the kernels.

    propose -> check (host) -> check (GPU) -> measure -> archive -> publish

`loop.evolve` is the whole search on one page; every other module here is one of its words. The
core never imports this package (the command line does, when it is asked to search).
"""

from __future__ import annotations
