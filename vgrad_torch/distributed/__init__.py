"""Training one model in several processes.

`launch` reads what torchrun tells a process, `team` is the processes that train a network with `vgrad train`, `ranks`
combines the snapshots of all processes for `watch`, and `shards` knows parameters that are spread over them.
"""
