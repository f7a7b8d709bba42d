"""`fpe bench`: quality where the right answers are known, speed beside other code, scale."""
