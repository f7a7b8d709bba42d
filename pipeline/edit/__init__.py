"""The GPU stage: one worker holds a model, inverts a block's sources, edits, judges and writes.

`actor` takes blocks, `block` makes the edits of one, `attempt` is one edit made once.
"""
