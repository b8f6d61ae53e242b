"""Deploy a run on real machines: ``python -m fedhess.deploy`` starts and prints Flower's own programs.

In come the settings of a run and the addresses of the machines; out come keys, commands and a job's directory.
"""
