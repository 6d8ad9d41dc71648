"""PPO: the loop, the roles on one base, rollouts, scores, the update and its proofs."""
