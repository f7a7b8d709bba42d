"""The input of a job: Parquet files with one row per source, checked before anything starts.

`files` opens and streams them, `columns` defines the columns and their types, `rows` reads a row
into a source and its edits. `prompts` expands templates, `labels` reads target labels, and
`annotations` reads boxes and masks.
"""
