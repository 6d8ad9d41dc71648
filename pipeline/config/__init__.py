"""The run file: its types, its loader, its overrides."""
