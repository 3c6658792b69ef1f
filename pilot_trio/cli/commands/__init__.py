"""One module per group of commands; each has `COMMANDS`, name → command. `cli.app` says which name is where."""
