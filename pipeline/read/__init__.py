"""The CPU stage: fetch, decode and fit the sources of a block; one typed failure per bad row."""
