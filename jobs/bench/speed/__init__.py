"""`fpe bench speed`: what an edit costs, beside the authors' procedure and a plain loop."""
