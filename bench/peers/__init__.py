"""Who takes part in ``bench.compare``: ours and its peers, each in a process of its own."""
