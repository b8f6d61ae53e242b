"""What a command asks for, and the directory that keeps it."""
