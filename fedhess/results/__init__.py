"""Turn rows of recorded runs into selected rounds, tables, figures and diagnoses.

Job directories go in; Markdown, LaTeX, CSV, JSON, HTML and figures in PNG, SVG and PDF come out.
"""
