"""Deploy a run on real machines: ``python -m fedhess.deploy`` starts and prints Flower's own programs.

Inputs are the settings of a run and the addresses of the machines; outputs are keys, commands and a job directory.

Set-up: `keys`, `nodes` (the node of each client), `settings` (of a run and of a node). Start: `programs` (Flower's
commands), `gateway` (nginx), `watch` (the process that stays running; `database`, `processes`), `local`. Run:
`packing` (the app), `submitted`, `app` (the ServerApp). Monitoring: `status`.
"""
