"""The transfer measure over balls of heads: losses of heads, the search for the supremum, table and figure."""
