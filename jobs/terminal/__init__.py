"""What every command shares on a terminal: console, log lines, progress, tables, exit codes."""
