"""What a person types or schedules: the `fpe` command and ready-made job files."""
