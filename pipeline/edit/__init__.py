"""The GPU stage: one worker holds a model, inverts a block's sources, edits, judges and writes.

`actor` takes blocks, `block` chooses the editor's calls for one, `results` writes what came of
them, `attempt` is one edit made once.
"""
