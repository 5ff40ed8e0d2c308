"""From corpus files to batches of packed rows."""
