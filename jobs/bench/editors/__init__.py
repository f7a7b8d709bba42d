"""`fpe bench editors`: all editing methods on the counterfactual benchmark, and their speed."""
