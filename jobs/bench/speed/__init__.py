"""`fpe bench speed`: the speed of editing, compared with the authors' procedure and a plain
loop."""
