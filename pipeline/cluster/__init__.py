"""Ray: the only wing that knows it. The session, the pool of workers, the graph of stages."""
