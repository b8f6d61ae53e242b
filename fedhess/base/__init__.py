"""Errors, files, seeds, tables, the environment: what every part uses and what knows no other part."""
