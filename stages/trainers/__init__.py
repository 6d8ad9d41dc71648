"""The training loops that Triptych owns."""
