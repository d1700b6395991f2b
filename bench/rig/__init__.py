"""What the measurements share: the machine's facts, tables and result files, child processes, load. No measurement."""
