"""Job files as the command line has them: the ready-made ones, and every key shown as YAML.

They are read in pipeline/job/file.py.
"""
