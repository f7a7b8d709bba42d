"""The GPU stage: one worker holds a model, inverts a block's sources, edits, judges and writes.

`actor` takes blocks, `block` decides which edits of a block go into which call of the editor,
`results` writes the edited images, `attempt` describes one attempt at an edit.
"""
