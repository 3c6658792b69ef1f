"""The fixtures come from here."""

pytest_plugins = ["pilot_trio.testing.fixtures"]
