"""The transfer measure over balls of heads: losses by the head, the search for the supremum, table and figure."""
