"""A fleet: machines that check and measure the candidates of one search, over dask.distributed.

    evolve --scheduler ADDR  --->  dask scheduler  <---  fleet worker --scheduler ADDR   (a machine)
    client.py                                            worker.py -> evolve/worker.py   (sandboxed)

link     where the scheduler is, TLS, and what every machine must share
client   Fleet, the executor of a search: hands requests to workers, notices who is gone
worker   a process of a machine that announces `check` or a chip, and answers a request at a time

dask carries texts, tells who is there and who is gone, and encrypts. It does not choose: every
request is bound to one worker. So a measurement whose worker died is never made on another one (its
candidate is taken for the cause), and a check is, at most four times more. Where the scheduler is
gone, workers end what they run before they come back, and what was open is handed in again, to the
same worker. A worker that is told to end (SIGTERM, Ctrl-C) says so: then another one is asked.

What we send is JSON with kernel text, and is checked where it arrives. dask's own wire pickles
functions: whoever may speak to a scheduler may run code on all of its machines. So members trust
each other, by certificates of one authority of their own, or are one machine.
"""
