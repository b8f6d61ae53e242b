"""What a strategy is made of."""
