"""The same things drawn in several styles, each style a domain, from npm packages of free drawings and fonts."""
