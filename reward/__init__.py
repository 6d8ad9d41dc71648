"""What people prefer: preference records and their checks, the reward model and its report card."""
