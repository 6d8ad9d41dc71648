"""Metrics: written once to metrics.jsonl, read from there by every tracker."""
