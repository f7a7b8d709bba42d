"""`fpe bench`: quality against known answers, speed against other code, scale."""
