"""One module per benchmark. `jobs.manifest_from.registry` finds the SOURCE of each."""
