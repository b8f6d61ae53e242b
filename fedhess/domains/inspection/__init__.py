"""What is there, what is missing, what is damaged."""
