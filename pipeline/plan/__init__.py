"""What is left to do: ids from content, minus the ledger, cut into blocks of the work list."""
