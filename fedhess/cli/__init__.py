"""Options of the commands, how they end, what --list prints."""
