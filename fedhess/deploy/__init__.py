"""Deploy a run on real machines: ``python -m fedhess.deploy`` starts and prints Flower's own programs.

In come the settings of a run and the addresses of the machines; out come keys, commands and a job's directory.

To set up: `keys`, `nodes` (which node is which client), `settings` (a run's and a node's). To start: `programs`
(Flower's commands), `gateway` (nginx), `watch` (what stays running; `database`, `processes`), `local`. To run:
`packing` (the app), `submitted`, `app` (the ServerApp). To look: `status`.
"""
