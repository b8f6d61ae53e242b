"""The round: protocol, client, server, engines."""
