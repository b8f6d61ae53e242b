"""What the commands share: options made from the run settings, headers, exit statuses, and what ``--list`` prints.

A command's arguments go in; an exit status (0, 1, or 2 for a mistake of the user) and text come out.
"""
