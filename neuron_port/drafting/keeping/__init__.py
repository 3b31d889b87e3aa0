"""What survives a kill: the journal of a run, replies and verdicts by content, files that are whole or absent."""
