"""Things that several test modules use: data, agents, runs, environments, commands."""
