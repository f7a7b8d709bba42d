"""The only wing that knows Ray: the session, the pool of workers, the graph of stages."""
