"""The command line, the one place that may import anything, lazily, inside a command."""
