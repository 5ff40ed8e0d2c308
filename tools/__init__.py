"""Command lines of gshard_tf."""
