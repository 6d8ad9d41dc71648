"""Pure tensor maths: masks, log-probs, advantages, losses, rewards."""
