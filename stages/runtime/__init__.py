"""What several stages share: loading, adapters, chat text, generation, checkpoints."""
