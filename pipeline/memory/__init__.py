"""What a stage needs of a GPU, from config.json alone: exact where it can be, bounded where not. No torch."""
