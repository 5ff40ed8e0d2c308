"""Registered models: `--model=model_registry.FILE.CLASS`."""
