"""The errors of environments that end a run which learns online."""

from __future__ import annotations


class EnvironmentFailed(ValueError):
    """An environment raised, or returned what the agent cannot learn from; the message says what to do.

    Attributes:
        remedy: what ends the message where nothing was learned yet; elsewhere the same command goes on. Empty if it
            would only meet the same again.
    """

    remedy = "; if that depends on the episode, try another seed"


class TerminationRefused(EnvironmentFailed):
    """An episode terminated in a run that does not learn from terminations: its keys have to change."""

    remedy = ""
