"""Plans what is left to do: all edits by id, minus those in the ledger, cut into blocks."""
