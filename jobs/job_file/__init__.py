"""The ready-made job files, and a job file with all its keys as YAML (`fpe config show`).

Job files are read in pipeline/job/file.py.
"""
