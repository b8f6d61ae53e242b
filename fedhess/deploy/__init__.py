"""Deploy on real machines: ``python -m fedhess.deploy``, thin over Flower's own programs, each of which it prints."""
