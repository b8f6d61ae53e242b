"""Where a federation runs: in this process, or on another Flower runtime."""
