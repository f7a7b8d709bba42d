"""`fpe bench scale`: measures the engine without a model, for manifests of 10^3 rows and more."""
