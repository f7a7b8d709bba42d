"""`fpe bench`: measures quality against known answers, speed against other code, and scale."""
