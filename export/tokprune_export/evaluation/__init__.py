"""What pruning does to answers: every selector at every budget, on the same questions."""
