"""What `fpe bench scale` is made of: the engine without its model, at sizes from 10^3 rows."""
