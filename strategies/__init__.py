"""The strategies that ship with fedhess: one method a file."""
