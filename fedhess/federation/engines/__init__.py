"""Where the clients of a run work: threads of this process, or Ray's processes; SuperNodes run them by themselves."""
