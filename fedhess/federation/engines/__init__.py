"""Where the clients of a run are executed: threads of this process or Ray's processes. SuperNodes need no engine."""
