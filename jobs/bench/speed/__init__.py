"""`fpe bench speed`: what an edit costs, compared with the authors' procedure and a plain loop."""
