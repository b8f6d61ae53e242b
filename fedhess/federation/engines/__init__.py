"""Where clients run: in this process, on Ray; SuperNodes run them by themselves."""
