"""Rows of finished runs to selected rounds, tables, figures and diagnoses.

In come job directories; out come Markdown, CSV, JSON and figures in PNG and SVG.
"""
