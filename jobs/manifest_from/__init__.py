"""Manifests made from benchmarks: a source reads a folder, one writer writes its rows to Parquet.

    sets/      one module per benchmark, each with a SOURCE: what it reads, its licence, its rows
    registry   finds them by name
    source     Row, Picture, Source: what a source has to give
    files, tables, masks, prompts   what several of them read with
    writer     rows to Parquet, and the rows that no run could take to a file of their own
    hub        a dataset of the hub as a folder

Nothing is guessed: what a set does not have is null, and a row that lacks something says so.
"""
