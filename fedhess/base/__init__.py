"""What every other package uses: errors for the user, files and caches, seeds, tables, threads and devices.

It imports no other package of fedhess.
"""
