"""The `tritonlive` command, one file a group of subcommands.

Nothing here imports torch, vLLM or numpy before a command runs: `--help` and shell completion answer at once.
"""
