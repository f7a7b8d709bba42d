"""What a person gives: Parquet files with one row per source, checked before anything starts.

`files` opens and streams them, `columns` knows the types, `rows` reads a row into a source and its
edits, `prompts`, `labels` and `annotations` read what is special.
"""
